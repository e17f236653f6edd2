"""Every option with its default: the paper's method (arXiv 2605.28109) at the paper's settings.

A run needs at least a model and a data source on top of it:

    python -m ibtpo.train --config=configs/base.py --workdir=runs/mine \
        --config.model.path=<folder in Hugging Face format> --config.data.source=jsonl:<problems>

[paper] marks a value the paper reports, [ours] a choice of this project (docs/method.md). A placeholder has no
value until `ibtpo.config.resolve` fills it from `method`, by default with what its comment names first; a value set
here or on the command line wins.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The base configuration; the other files of this folder start from it."""
    config = config_dict.ConfigDict()
    # Named combination that fills the placeholders below: ibtpo | grpo | dr_grpo | dapo | rloo | gspo | cispo | sapo |
    # ibro | tempo | lambda_grpo | treerl | treepo | tree_grpo | spo_tree | treerpo | treeadv (docs/method.md, section
    # 6).
    config.method = "ibtpo"
    # Folder of JAX's compiled programs, which the next run reads instead of compiling; JAX_COMPILATION_CACHE_DIR in the
    # environment comes before it; "": none.
    config.compilation_cache = "~/.cache/ibtpo/compilation"

    config.model = model = config_dict.ConfigDict()
    # Folder with config.json, *.safetensors and tokenizer (Hugging Face layout), or where there is none of this name
    # the id of such a model on the hub, "Qwen/Qwen3-0.6B", which is fetched (docs/design.md).
    model.path = ""
    # Branch, tag or commit of that id; "": main. What it meant at the start, "main@<commit>", is saved with the run.
    model.revision = ""
    model.preset = ""  # published model whose sizes that folder must have, e.g. "Qwen/Qwen3-8B"; "": any
    model.dtype = "bfloat16"  # of activations; log-probabilities are float32 always
    model.param_dtype = "float32"  # of parameters and optimizer state; with adapters, of theirs
    # Recomputed in the backward pass, layer by layer: none | elementwise, all but products | attention, all but the
    # attention itself | full. Each needs less memory than the one before; the last two up to a third more FLOPs.
    model.remat = "attention"
    # Rank of low-rank adapters (LoRA) of the layers' matrices, which are trained instead of all parameters; these stay
    # as they are, in model.dtype, and are the reference. 0: none, all parameters are trained.
    model.lora_rank = 0
    model.lora_alpha = 32.0  # the product of an adapter's two matrices is multiplied by lora_alpha / lora_rank
    model.lora_targets = "all"  # matrices that have adapters: all | attention, q, k, v and o | mlp, gate, up and down

    config.data = data = config_dict.ConfigDict()
    # "tfds:<name>" of a generated task (chained_arithmetic, navigation, countdown) or a published set (docs/data.md),
    # "hf:<owner>/<name>" of the hub, "reasoning_gym:<name>", "jsonl:<path>" or "parquet:<path>"; {split} in a path is
    # replaced.
    data.source = ""
    # File, pattern ("parts/*.parquet") or folder with the publisher's files of "tfds:<name>" and of benchmarks, {split}
    # is replaced; files that a folder lacks, and all where this is "", come through the hub. Of "hf:<owner>/<name>":
    # the folder that its files are in.
    data.files = ""
    data.subset = ""  # of "hf:<owner>/<name>" where it has several: one of its configurations by name; "": the default
    # Branch, tag or commit of "hf:<owner>/<name>"; "": main. "main@<commit>" is saved with the run, as of the model.
    data.revision = ""
    data.check_rows = True  # refuse a published set with another number of rows; False: a warning
    data.dir = ""  # where TFDS keeps prepared data sets; "": the default of TFDS
    data.train_split = "train"  # split sampled for training; of a TFDS source also a slice, "train[512:]"
    data.eval_split = "test"  # held-out split, or a slice too
    # Evaluation sets whose problems are left out of training, and reported: benchmarks (docs/data.md) or sources like
    # "jsonl:<path>", separated by commas; "": none.
    data.decontaminate = ""
    data.question_field = "question"  # field of a line or row with the question; dotted if nested, "prompt.0.content"
    data.answer_field = "answer"  # field with the answer
    # Where the answer is in that field: a regular expression with one group, "boxed" (last \boxed{}), "" = verbatim.
    data.answer_pattern = ""
    # Text given to the model; {question} is replaced.
    data.prompt = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n"
    data.chat_template = False  # wrap the prompt as a user turn with the tokenizer's chat template
    data.system_prompt = ""  # system turn before it, chat_template only; "": the template's own
    data.max_prompt_tokens = 1024  # tokens; a longer prompt is left out of training
    data.separator = "\n\n"  # text that ends a reasoning step, with step_rule separator [paper]
    data.step_rule = "separator"  # separator: a step ends behind data.separator | sentence: behind a sentence or a line
    data.moved_steps = 0.0  # share of the steps' ends put 1 to 3 tokens later, to see how much depends on them
    data.difficulty = "normal"  # of a generated task: easy | normal | hard, or long (arithmetic)
    data.options = ""  # parameters of a task of reasoning_gym, as JSON, '{"min_terms": 3}'; "": its own
    data.limit = 0  # use only the first data.limit problems of a split; 0: all

    config.tree = tree = config_dict.ConfigDict()
    # ib | random | entropy | fixed_width | independent | at2po | uucb, or module:function (docs/extending.md)
    tree.strategy = config_dict.placeholder(str)
    tree.initial = config_dict.placeholder(int)  # B0, unguided responses per question
    tree.rounds = config_dict.placeholder(int)  # L, sampling rounds, the unguided one included
    tree.top_k = config_dict.placeholder(int)  # K, nodes that branch per round
    tree.branch = config_dict.placeholder(int)  # B, new responses per branching node
    tree.beta = 5.0  # beta, weight of the information term of the bottleneck [paper]
    tree.ratio_power = 1  # eta1 uses (p(s) / p(parent)) to this power: 1 [paper], 2 strict form [ours]
    tree.confidence = "geometric_mean"  # pi(s): geometric_mean of token probabilities [ours] | joint product
    tree.value = "leaf_mean"  # p-hat of a node in advantages: leaf_mean [paper] | backup, recursive child mean [ours]
    tree.branch_value = "leaf_mean"  # p-hat in the score J that chooses where to branch: leaf_mean | backup
    # Weight of a child in J's mean: responses, those that run through it [ours] | uniform, children alike [printed].
    tree.child_weight = "responses"
    # Rounds in which one node may branch (the question: the first is one) while others are left, strategy ib only; 0:
    # any number [printed].
    tree.rebranch = 1
    tree.root = "all"  # p-hat of the root: all responses | initial, only the unguided ones [ours]
    tree.sibling_penalty = 0.05  # alpha, of at2po: taken off a node's surprise for each sibling
    tree.explore = 0.5  # of uucb: weight of sqrt(ln(responses + 1) / responses through the node) [ours]
    tree.surprise = 1.0  # of uucb: weight of the mean -log pi of the steps that follow [ours]
    # Rounds more, at most, for a question whose rewards are all equal so far (after InfoTree's adaptive budget).
    tree.extra_rounds = 0
    # Rounds of which the next does not wait: round r is chosen from the unguided responses and those of rounds up to
    # r - 1 - lag, so that lag + 1 rounds of a question are decoded side by side; not of fixed_width.
    tree.lag = 0
    tree.min_new_tokens = 16  # a node with less room than this before max_new_tokens never branches [ours]
    tree.segment_tokens = 256  # tokens per segment; strategy fixed_width only

    config.sampling = sampling = config_dict.ConfigDict()
    sampling.temperature = 0.7  # [paper]
    sampling.top_k = 20  # keep the k most probable tokens; 0: off [paper]
    sampling.top_p = 0.95  # keep the smallest set of tokens with this probability; 1: off [paper]
    sampling.min_p = 0.0  # drop tokens below this fraction of the largest probability; 0: off
    sampling.max_new_tokens = 2048  # per response, its shared prefix included [paper]
    # Special tokens that end a response, "<|im_end|>,<|endoftext|>"; "": those of tokenizer and generation_config.json.
    sampling.stop_tokens = ""
    # Texts that end one too, as a JSON list, '["</answer>"]'; the token in which one is complete is the last.
    sampling.stop_strings = ""
    sampling.slots = 256  # responses decoded side by side
    # Pages of the key-value cache; 0: enough for the questions in flight at their longest, or what memory_share of each
    # device holds beside weights, optimizer state, reference and serving copy (of a CPU: half the host's memory).
    sampling.pages = 0
    sampling.memory_share = 0.9  # of each device's memory, for all that is there while responses are sampled
    sampling.page_size = 64  # tokens per page, a power of two
    sampling.chunk = 64  # steps decoded between two visits of the host
    # Questions whose trees grow at the same time; 0: as many as have two responses for each slot.
    sampling.questions_in_flight = 0
    # Whether the sampler waits for rewards at fixed points, so that the time of grading decides no batch: two runs are
    # then equal bit for bit (docs/reliability.md).
    sampling.deterministic = False

    config.loss = loss = config_dict.ConfigDict()
    # ibtpo | grpo | dr_grpo | rloo | treerl | treepo | tree_grpo | spo_tree | treerpo | treeadv | tempo, or
    # module:function
    loss.advantage = config_dict.placeholder(str)
    loss.objective = config_dict.placeholder(str)  # clip (PPO, GRPO, DAPO) | cispo | sapo | gspo
    # Ratio is clipped below at 1 - clip_low: 0.2; gspo 3e-4; cispo 1, which is not at all (verl's: 0.2).
    loss.clip_low = config_dict.placeholder(float)
    # Ratio is clipped above at 1 + clip_high: 0.2; dapo, tempo and treepo 0.28, treerl 0.26, gspo 4e-4.
    loss.clip_high = config_dict.placeholder(float)
    loss.dual_clip = 0.0  # c > 1 bounds the loss of a negative advantage A by -c A; 0: off
    # Truncated importance sampling: the largest weight for the gap between the sampler's and the trainer's
    # log-probabilities (2 is usual); 0: off.
    loss.importance_cap = 0.0
    # Train only tokens that were drawn with less: 1, all; spo_tree 0.9.
    loss.max_old_probability = config_dict.placeholder(float)
    loss.entropy_bonus = 0.0  # weight of the mean token entropy, which is rewarded
    # Weight of the mean of advantage times entropy, which is rewarded: 0; ibro 5e-3.
    loss.entropy_advantage = config_dict.placeholder(float)
    # Weight of the KL (k3) to the frozen reference: 0.001 [paper]; spo_tree 1e-4; dapo, gspo, tempo, lambda_grpo,
    # treerl and treepo 0, no reference is kept.
    loss.kl = config_dict.placeholder(float)
    loss.ib_weight = 0.1  # lambda, weight of A_IB beside A_GL [paper]
    loss.ib_confidence = "behaviour"  # pi_ref in A_IB: behaviour, the sampling policy [ours] | reference
    # response_mean (GRPO) | token_mean (dapo, cispo, tempo, treepo, tree_grpo) | fixed_length (dr_grpo) | unique_mean,
    # each unique token once (spo_tree, treerpo)
    loss.aggregation = config_dict.placeholder(str)
    # A token that several responses share counts in each of them: each | once, its weights divided by their number
    # (lambda_grpo).
    loss.shared_tokens = config_dict.placeholder(str)
    # What differences of rewards are divided by: population, of n (ibtpo) | sample, of n - 1 (verl, TRL) | bernoulli,
    # p (1 - p) (treerpo).
    loss.deviation = config_dict.placeholder(str)
    loss.group_of_one = config_dict.placeholder(str)  # advantage of a group's only member: zero | reward (tree_grpo)
    loss.value_center = "none"  # taken off the values of treerl: none | tokens, their mean over the responses' tokens
    # Leave out tokens whose advantage is 0, also of means: no; spo_tree and treerpo yes.
    loss.skip_zero_advantages = config_dict.placeholder(bool)
    # Shift and scale the advantages to mean 0 and deviation 1 over the trained tokens of a step: no; treepo yes.
    loss.whiten_advantages = config_dict.placeholder(bool)
    loss.mask_uniform_groups = True  # leave out questions whose rewards are all equal [ours]
    loss.mask_truncated = False  # leave out responses cut off at max_new_tokens (DAPO's overlong filtering)

    config.reward = reward = config_dict.ConfigDict()
    # How a response is graded, unless its problem says: math | multiple_choice | instructions (IFEval) | navigation |
    # countdown | reasoning_gym, or module:function.
    reward.kind = "math"
    # Whether an expression still to be evaluated answers a number, "9*2" 18. It pays for a copy of the question's
    # formula (docs/evaluation.md).
    reward.unevaluated = False
    # Terms with weights that are added to it in the advantages only, "format:0.1,length:-0.05" (docs/extending.md); "":
    # none. format: 1 for exactly one complete \boxed{}. length: tokens / max_new_tokens.
    reward.terms = ""
    # DAPO's soft overlong punishment, in the advantages only: over the last share of max_new_tokens it falls from 0 to
    # -overlong_penalty. 0, off; dapo 0.25.
    reward.overlong_share = config_dict.placeholder(float)
    reward.overlong_penalty = 1.0  # the most that is taken off
    reward.workers = 4  # grading processes
    reward.timeout = 5.0  # seconds per response, after which it counts as wrong
    reward.memory_mb = 2048  # memory limit of one grading process, MiB

    config.optimizer = optimizer = config_dict.ConfigDict()
    optimizer.learning_rate = 1e-6  # peak [paper]
    optimizer.schedule = "constant"  # after the warm-up: constant | linear | cosine, to 0 at train.steps
    optimizer.warmup_steps = 0  # linear warm-up from 0, in updates
    optimizer.b1 = 0.9  # AdamW, decay of the first moment
    optimizer.b2 = 0.95  # AdamW, decay of the second moment
    optimizer.eps = 1e-8  # AdamW, added to the root of the second moment
    optimizer.weight_decay = 0.0  # AdamW, decoupled; matrices only
    optimizer.clip_norm = 1.0  # global norm of the gradient; 0: off
    optimizer.first_moment_dtype = "float32"  # or bfloat16, which saves 2 bytes per parameter

    config.train = train = config_dict.ConfigDict()
    train.steps = 136  # updates; about one epoch of 17 thousand problems at 128 per step [paper: one epoch]
    train.questions_per_step = 128  # trees per step
    train.epochs = 1  # times that a step's trees are trained on; the ratio is to the policy that drew them
    train.minibatches = 1  # updates of each epoch, each on some of the trees, drawn anew
    # DAPO's dynamic sampling: how often questions whose rewards are all equal are replaced by new ones. 0, never;
    # dapo 9.
    train.refills = config_dict.placeholder(int)
    train.seed = 0  # of everything random
    # Tokens of a packed row, which holds trees, or pieces of one that is longer; 0: a quarter, a half or all of the
    # largest tree there can be, as the longest tree of the step needs. One program each.
    train.row_tokens = 0
    train.rows_per_step = 8  # rows of one microbatch; gradients of an update's microbatches are summed
    # Updates in a row without a finite loss and gradient (skipped and counted) after which the run ends, and leaves the
    # last one's batch in the workdir; 0: never.
    train.max_skipped = 3
    # Seconds without a sign of life after which another host is gone, and the run ends on all; several hosts only.
    train.host_timeout = 60.0
    train.token_block = 1024  # tokens of a row whose logits, over the whole vocabulary, exist at a time

    config.mesh = mesh = config_dict.ConfigDict()
    mesh.data = -1  # devices over which rows and slots are split; -1: all that remain
    mesh.fsdp = 1  # devices over which parameters are split, rows too
    mesh.tensor = 1  # devices over which heads and mlp are split

    config.eval = evaluation = config_dict.ConfigDict()
    evaluation.every = 20  # updates between evaluations (the first is before training); 0: never
    # Benchmarks of ibtpo.evaluate, names separated by commas ("gsm8k,math_500,aime_2024"); "": the held-out split.
    evaluation.benchmarks = ""
    evaluation.questions = 0  # the first eval.questions of the held-out split or of each benchmark; 0: all
    evaluation.samples = 32  # k of avg@k, independent responses per question [paper]
    evaluation.temperature = 0.7  # [paper]
    evaluation.top_k = 20  # [paper]
    evaluation.top_p = 0.95  # [paper]
    evaluation.min_p = 0.0  # 0: off

    config.checkpoint = checkpoint = config_dict.ConfigDict()
    checkpoint.dir = ""  # folder or URL (gs://...) of the checkpoints, seen by all hosts; "": in the workdir
    checkpoint.every = 20  # updates between checkpoints; the last update is always saved
    checkpoint.keep = 2  # newest checkpoints kept
    # Seconds that a run which is asked to end (SIGTERM, SIGINT, a preemption notice) may take to finish its update and
    # save; where the update would take longer, its sampling is given up.
    checkpoint.grace_seconds = 30.0

    config.log = log = config_dict.ConfigDict()
    log.every = 1  # updates between lines of metrics.jsonl
    log.tensorboard = True  # write TensorBoard event files too
    # Weights & Biases too (docs/watching.md); WANDB_MODE=offline records in the workdir.
    log.wandb = False
    log.trackio = False  # Trackio too
    log.project = "ibtpo"  # project of the run at these services
    log.run_name = ""  # its name there; "": that of the workdir's folder
    # Trees kept in the workdir for the report (docs/report.md): of how many questions at a time, the first of an update
    # and of an evaluation; 0: none.
    log.trees = 4
    # Updates between those of training; each evaluation has its own; 0: only these. TensorBoard and the services have
    # them as texts.
    log.trees_every = 20
    log.tree_files = 100  # most files of training, and of evaluations; beyond, those that stay cover the run evenly
    return config
