"""stub, replaced below"""
import json
from pathlib import Path
import torch
from safetensors.torch import save_file
from tandem.config import to_dict

def save_checkpoint(path, model, extra):
    kind = "vqvae" if type(model).__name__ == "Vqvae" else "var"
    tensors = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, str(path), metadata={"tandem": json.dumps({"kind": kind, "config": to_dict(model.config), **extra}, sort_keys=True)})

def load_vqvae(path):
    raise NotImplementedError
