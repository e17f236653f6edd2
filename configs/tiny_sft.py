"""The tiny base model: 0.83 M parameters, from scratch, on worked solutions with mistakes in them.

Command:   python -m ibtpo.sft --config=configs/tiny_sft.py --workdir=runs/tiny_sft
Tokenizer: python assets/make_tokenizer.py --output assets/qwen3-tiny (before the first run)
Hardware:  two CPU cores, 8 minutes
Result:    sft/loss 0.10; then python -m ibtpo.evaluate --config=configs/tiny.py --checkpoint=assets/qwen3-tiny says
           avg@8 42.6 % on 256 held-out problems at temperature 1, and 98.4 % greedily (--config.eval.top_k=1). The
           model knows the task and samples mistakes at the rate it was shown: these are left to learn.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Every key of `ibtpo.sft`."""
    config = config_dict.ConfigDict()
    config.tokenizer = "assets/qwen3-tiny"  # folder of the tokenizer, or an id of the hub
    config.output = "assets/qwen3-tiny"  # model directory to write, in Hugging Face layout
    config.compilation_cache = "~/.cache/ibtpo/compilation"  # folder of JAX's compiled programs; "": none

    config.model = model = config_dict.ConfigDict()
    # Model directory to start from, or an id of the hub ("Qwen/Qwen3-0.6B"); "": random weights of `architecture`.
    model.path = ""
    model.revision = ""  # branch, tag or commit of that id; "": main
    model.architecture = architecture = config_dict.ConfigDict()  # fields of ModelConfig
    architecture.family = "qwen3"
    architecture.embed_dim = 128
    architecture.mlp_dim = 384
    architecture.num_layers = 4
    architecture.num_heads = 4
    architecture.num_kv_heads = 2
    architecture.head_dim = 32
    architecture.rope_theta = 10_000.0
    architecture.tie_embeddings = True
    architecture.qk_norm = True
    architecture.max_positions = 512
    model.dtype = "float32"  # of activations
    model.param_dtype = "float32"  # of parameters, optimizer state and the files written
    model.remat = "none"  # recomputed in the backward pass: none | elementwise | attention | full

    config.data = data = config_dict.ConfigDict()
    data.source = "arithmetic"  # or "navigation", "countdown", drawn as needed; or "jsonl:<path>"
    data.difficulty = "normal"  # of a generated task: easy | normal | hard, or long (arithmetic)
    data.noise = 0.2  # share of a generated task's steps that are made wrong
    data.question_field = "question"  # field of a JSON line with the question
    data.solution_field = "solution"  # field of a JSON line with the worked solution
    data.prompt = "Question: {question}\nAnswer:\n"  # text before the solution; {question} is replaced
    data.chat_template = False  # wrap the prompt as a user turn with the tokenizer's chat template
    data.system_prompt = ""  # system turn before it, chat_template only
    data.max_prompt_tokens = 64  # tokens; a longer prompt is an error

    config.optimizer = optimizer = config_dict.ConfigDict()
    optimizer.learning_rate = 3e-3  # peak
    optimizer.schedule = "cosine"  # after the warm-up: constant | linear | cosine, to 0 at train.steps
    optimizer.warmup_steps = 100  # linear warm-up from 0
    optimizer.b1 = 0.9  # AdamW, decay of the first moment
    optimizer.b2 = 0.98  # AdamW, decay of the second moment
    optimizer.eps = 1e-8  # AdamW, added to the root of the second moment
    optimizer.weight_decay = 0.05  # AdamW, decoupled; matrices only
    optimizer.clip_norm = 1.0  # global norm of the gradient; 0: off
    optimizer.first_moment_dtype = "float32"  # or bfloat16

    config.train = train = config_dict.ConfigDict()
    train.steps = 3_000  # updates
    train.seed = 0  # of weights, problems and mistakes
    train.rows = 4  # rows of a batch
    train.row_tokens = 256  # tokens of a row, which holds several whole examples

    config.log = log = config_dict.ConfigDict()
    log.every = 50  # updates between two rows of metrics.jsonl
    log.tensorboard = False  # write TensorBoard event files too
    # Weights & Biases too (docs/watching.md); WANDB_MODE=offline records in the workdir.
    log.wandb = False
    log.trackio = False  # Trackio too
    log.project = "ibtpo"  # project of the run at these services
    log.run_name = ""  # its name there; "": that of the workdir's folder
    return config
