"""Two processes on one machine: DDP and FSDP2 give the gradients of one process."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import numpy as np, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from hftune.tasks.aurora import AuroraConfig, AuroraForForecasting

torch.set_num_threads(1)
dist.init_process_group("gloo")
config = AuroraConfig(
    "custom", channels=["2t", "z_500", "z_850"], mean=[0.0] * 3, std=[1.0] * 3,
    difference_std=[0.1] * 3, latitude=np.linspace(60, 20, 9), longitude=np.arange(16) * 2.5,
    timestep_hours=6, embed_dim=16, num_heads=2, encoder_depths=(1, 1), decoder_depths=(1, 1),
    encoder_num_heads=(2, 4), decoder_num_heads=(4, 2), window_size=(2, 2, 4), patch_size=4,
)


def make():
    torch.manual_seed(0)
    model = AuroraForForecasting(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def gradients(model):
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([getattr(g, "full_tensor", lambda g=g: g)().flatten() for g in found])


torch.manual_seed(1)
whole = {
    "fields": torch.randn(4, 2, 3, 9, 16),
    "times": torch.arange(4),
    "target_fields": torch.randn(4, 2, 3, 9, 16),
}
one = make()
one(**whole).loss.backward()
expected = gradients(one)
mine = {name: value[2 * dist.get_rank() :][:2] for name, value in whole.items()}

sharded = make()
sharded.activation_checkpointing_enable()
mesh = init_device_mesh("cpu", (2,))
units = [m for m in sharded.modules() if type(m).__name__ in sharded._no_split_modules]
assert len(units) == 6
for unit in [*units, sharded]:
    fully_shard(unit, mesh=mesh)
parallel = make()
parallel.activation_checkpointing_enable()
for model in (sharded, DistributedDataParallel(parallel)):
    model(**mine).loss.backward()
    assert (gradients(model) - expected).norm() < 1e-5 * expected.norm()
dist.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one(tmp_path):
    script = tmp_path / "two_processes.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([sys.executable, *launcher, str(script)], check=True, timeout=300)
