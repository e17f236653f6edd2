"""Prompts as token ids: what they must begin with and must not end with, whatever tokenizer and chat template do."""

import functools
from collections.abc import Collection, Sequence

from absl import logging

from ibtpo.errors import UserError, one_line


def first_token(tokenizer) -> int | None:
    """The beginning-of-sequence token that the tokenizer puts before a text; None if it puts none there."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else None


def apply_chat_template(tokenizer, messages: list[dict[str, str]], way_out: str) -> str:
    """The text of a conversation up to the beginning of the assistant's turn.

    Raises:
      UserError: the template raises, whatever it raises; the message ends with `way_out`.
    """
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the model's publisher
        raise UserError(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} fails ({one_line(error)}): {way_out}"
        ) from error


def encode_prompts(
    texts: Sequence[str], tokenizer, *, chat: bool, stop_ids: Collection[int] = (), way_out: str = ""
) -> list[list[int]]:
    """Token ids of prompts: each begins with the tokenizer's beginning-of-sequence token if it has one
    (`first_token`), once, and none ends with a stop token, after which a model has nothing to say.

    What is missing is added and what is too much left out, with a warning.

    Args:
      chat: the texts are of a chat template, which spells its special tokens out.
      stop_ids: beside the tokenizer's end-of-sequence token.

    Raises:
      UserError: the text of a chat template ends with a stop token: no turn of the assistant begins there. The message
        ends with `way_out`.
    """
    if not texts:
        return []
    stops, bos = {*stop_ids, tokenizer.eos_token_id} - {None}, first_token(tokenizer)
    name = tokenizer.name_or_path
    prompts = []
    for tokens in tokenizer(list(texts), add_special_tokens=not chat)["input_ids"]:
        if tokens and tokens[-1] in stops:
            last = f"{tokenizer.convert_ids_to_tokens(tokens[-1])} ({tokens[-1]})"
            if chat:
                raise UserError(
                    f"a prompt of the chat template of {name!r} ends with the stop token {last}, so that no turn of "
                    f"the assistant begins: {way_out}"
                )
            _warn_once(f"{name}: prompts end with the stop token {last}; it is left out")
            while tokens and tokens[-1] in stops:
                tokens = tokens[:-1]
        if bos is not None and tokens and tokens[0] != bos:
            _warn_once(f"{name}: prompts lack the token {tokenizer.bos_token} ({bos}) at their beginning; it is added")
            tokens = [bos, *tokens]
        while bos is not None and tokens[:2] == [bos, bos]:
            _warn_once(f"{name}: prompts begin with the token {tokenizer.bos_token} ({bos}) twice; one is left out")
            tokens = tokens[1:]
        prompts.append(tokens)
    return prompts


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning("%s", message)
