"""Runs in the environment of `check_against_llava.py`: what the original LLaVA code makes of a checkpoint.

Nothing of this project is imported here. The only argument is a JSON object; the result is a safetensors file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model import LlavaLlamaForCausalLM
from llava.model.language_model.llava_llama import LlavaConfig
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer


def main(job: dict[str, Any]) -> None:
    """Prompt, preprocess, one forward and a greedy answer for every image, by LLaVA's own functions."""
    dtype, device = getattr(torch, job["dtype"]), job["device"]
    # by its class: what the hub calls 'llava' is transformers' own model by now
    config = LlavaConfig.from_pretrained(job["checkpoint"])
    model = LlavaLlamaForCausalLM.from_pretrained(
        job["checkpoint"], config=config, torch_dtype=dtype, low_cpu_mem_usage=True
    )
    tower = model.get_vision_tower()
    tower.load_model()
    model.to(device, dtype).eval()
    files = Path(job["checkpoint"])
    bare = files.is_dir() and not any((files / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))
    tokenizer = None if bare else AutoTokenizer.from_pretrained(job["checkpoint"], use_fast=False)
    results = {}
    for number, file in enumerate(job["images"]):
        if tokenizer is None:
            ids = torch.tensor([*list(range(3, 23)), IMAGE_TOKEN_INDEX, *list(range(23, 43))])
        else:
            conversation = conv_templates["vicuna_v1"].copy()
            conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{job['question']}")
            conversation.append_message(conversation.roles[1], None)
            text = conversation.get_prompt()
            ids = tokenizer_image_token(text, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
            results[f"{number}.ids"] = ids
        image = Image.open(file).convert("RGB")
        pixels = process_images([image], tower.image_processor, model.config)[0]
        inputs, images = ids[None].to(device), pixels[None].to(device, dtype)
        with torch.inference_mode():
            logits = model(input_ids=inputs, images=images).logits[0]
            ends = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id")}
            settings = {"do_sample": False, "max_new_tokens": job["tokens"], "pad_token_id": 0}
            answer = model.generate(inputs, images=images, **settings, **ends)[0]
        # the answer of a model that was given embeddings holds the new tokens only, in some versions after the start
        answer = answer[1:] if len(answer) and int(answer[0]) == model.config.bos_token_id else answer
        results |= {f"{number}.pixels": pixels.float(), f"{number}.logits": logits.float().cpu()}
        results[f"{number}.answer"] = answer.cpu()
    save_file({name: tensor.contiguous() for name, tensor in results.items()}, job["out"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
