"""A growing resume under FSDP2, in two processes: what one process would have, part by part."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

COMMON = """
    import json, sys
    from datetime import timedelta
    import lightning as L
    import torch
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from lightning_grow.callbacks import ArchTransfer, GrowthSchedule
    from lightning_grow.errors import RefusedGrowth
    from stacks import Stack, batches

    torch.set_num_threads(1)

    class Sharded(Stack):
        def __init__(self, hidden_dims=(9, 7), schedule=None):
            super().__init__(hidden_dims, schedule=schedule)
            self.save_hyperparameters()

        def configure_model(self):
            if self.device_mesh is None and not GUARDED:
                raise TypeError("'NoneType' object is not subscriptable")  # what an unguarded mesh raises
            if self.device_mesh is None:
                return
            mesh = self.device_mesh["data_parallel"]
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=mesh)
            fully_shard(self, mesh=mesh)

    GUARDED = True

    def whole(item):
        return (item.full_tensor() if isinstance(item, DTensor) else item).detach().clone()

    class Seen(L.Callback):
        # weights and moments as the first step finds them, and how large the parts are
        def on_train_start(self, trainer, module):
            self.step = trainer.global_step
            self.weights = {name: whole(item) for name, item in module.state_dict().items()}
            states = trainer.optimizers[0].state
            self.moments = {
                f"{name} {kind}": whole(item)
                for name, parameter in module.named_parameters() for kind, item in states.get(parameter, {}).items()
            }
            parameters = list(module.parameters())
            self.trained = {}
            self.parts = sum(item.to_local().numel() for item in parameters if isinstance(item, DTensor))
            self.all = sum(item.numel() for item in parameters)

        def on_train_end(self, trainer, module):
            self.trained = {name: whole(item) for name, item in module.state_dict().items()}

    def fit(hidden_dims, folder, epochs, path=None, processes=2, full=True, schedule=None, stages=None, **settings):
        strategy = ModelParallelStrategy(
            processes, 1, process_group_backend="gloo", save_distributed_checkpoint=not full,
            timeout=timedelta(seconds=60),
        ) if processes else "auto"
        seen = Seen()
        L.seed_everything(3, verbose=False)
        trainer = L.Trainer(
            accelerator="cpu", devices=processes or 1, strategy=strategy, max_epochs=epochs, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, use_distributed_sampler=False,
            callbacks=[GrowthSchedule(stages, at=[4]) if stages else ArchTransfer(**settings), seen],
        )
        trainer.fit(Sharded(hidden_dims, schedule), batches(), ckpt_path=path)
        return trainer, seen
"""


def run(tmp_path, code):
    """Run a script in two processes, as Lightning launches them; return what the first one printed."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(COMMON) + textwrap.dedent(code))
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line[: line.index("}") + 1]) for line in done.stdout.splitlines() if line.startswith("{")]


SETTINGS = [
    {"optimizer": "transfer"},
    {"optimizer": "transfer", "warmup_scope": "new", "num_warmup_steps": 5},
    {"optimizer": "reset"},
    {"optimizer": "transfer", "strategy": "net2wider"},
    {"optimizer": "transfer", "strategy": "copy_and_extend"},
]


def test_two_processes_grow_into_what_one_would(tmp_path):
    found = run(
        tmp_path,
        f"""
        folder = sys.argv[1]
        trainer, _ = fit([9, 7], folder, 1, schedule="cosine")
        trainer.save_checkpoint(f"{{folder}}/small.ckpt")
        for number, settings in enumerate({SETTINGS!r}):
            GUARDED = number % 2 == 0
            grown, seen = fit([14, 11, 11], folder, 2, f"{{folder}}/small.ckpt", schedule="cosine", **settings)
            if trainer.is_global_zero:
                torch.save([seen.weights, seen.moments, seen.trained], f"{{folder}}/{{number}}.pt")
                rates = grown.lr_scheduler_configs[0].scheduler.last_epoch
                sizes = dict(parts=seen.parts, all=seen.all)
                print(json.dumps(dict(step=seen.step, last=grown.global_step, rates=rates, **sizes)))
    """,
    )
    assert len(found) == len(SETTINGS)
    alone = tmp_path / "alone.py"
    alone.write_text(
        textwrap.dedent(COMMON)
        + textwrap.dedent(f"""
        folder = sys.argv[1]
        for number, settings in enumerate({SETTINGS!r}):
            trainer, seen = fit([14, 11, 11], folder, 2, f"{{folder}}/small.ckpt", 0, schedule="cosine", **settings)
            there = torch.load(f"{{folder}}/{{number}}.pt")
            for mine, theirs in zip([seen.weights, seen.moments], there):
                assert mine.keys() == theirs.keys(), (settings, mine.keys() ^ theirs.keys())
                for name in mine:
                    assert torch.equal(mine[name], theirs[name]), (settings, name)
            for name, item in seen.trained.items():  # gradients are sums over two processes: rounded otherwise
                torch.testing.assert_close(item, there[2][name], rtol=1e-4, atol=1e-5)
            rates = trainer.lr_scheduler_configs[0].scheduler.last_epoch
            print(json.dumps(dict(step=seen.step, last=trainer.global_step, rates=rates, moments=len(seen.moments))))
    """)
    )
    paths = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(alone), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    expected = [json.loads(line[: line.index("}") + 1]) for line in done.stdout.splitlines() if line.startswith("{")]
    for ours, theirs in zip(found, expected, strict=True):
        assert {key: ours[key] for key in ("step", "last", "rates")} == {
            key: theirs[key] for key in ("step", "last", "rates")
        }
        assert ours["parts"] < 0.7 * ours["all"]  # of two processes each holds its part
    assert expected[0]["moments"] > 0
    assert expected[2]["moments"] == 0


def test_a_run_grown_in_parts_is_saved_and_goes_on_and_grows_again(tmp_path):
    found = run(
        tmp_path,
        """
        folder = sys.argv[1]
        trainer, _ = fit([9, 7], folder, 1)
        trainer.save_checkpoint(f"{folder}/small.ckpt")
        trainer, _ = fit([14, 11], folder, 2, f"{folder}/small.ckpt", optimizer="transfer")
        trainer.save_checkpoint(f"{folder}/large.ckpt")
        again, seen = fit([14, 11], folder, 3, f"{folder}/large.ckpt")
        larger, wide = fit([20, 16], folder, 3, f"{folder}/large.ckpt", optimizer="transfer")
        trainer, _ = fit([14, 11], folder, 2, f"{folder}/small.ckpt", full=False, optimizer="transfer")
        trainer.save_checkpoint(f"{folder}/folder.ckpt")
        parts, _ = fit([14, 11], folder, 3, f"{folder}/folder.ckpt")
        _, other = fit([20, 16], folder, 3, f"{folder}/folder.ckpt", optimizer="transfer")
        alone, one = fit([20, 16], folder, 3, f"{folder}/folder.ckpt", 0, optimizer="transfer")
        if trainer.is_global_zero:
            weights = seen.weights["net.2.weight"]
            kept = torch.equal(wide.weights["net.2.weight"][:11, :14], weights)
            moments = torch.equal(wide.moments["net.2.weight exp_avg"][:11, :14], seen.moments["net.2.weight exp_avg"])
            steps = [again.global_step, larger.global_step, parts.global_step, alone.global_step]
            alike = [
                ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
                for found in (other, one)
                for ours, theirs in ((found.weights, wide.weights), (found.moments, wide.moments))
            ]
            print(json.dumps(dict(kept=kept, moments=moments, steps=steps, alike=alike)))
    """,
    )
    assert found == [{"kept": True, "moments": True, "steps": [24, 24, 24, 24], "alike": [True] * 4}]


def test_a_warm_up_goes_on_after_a_resume_in_its_middle(tmp_path):
    found = run(
        tmp_path,
        """
        folder = sys.argv[1]
        trainer, _ = fit([9, 7], folder, 1)
        trainer.save_checkpoint(f"{folder}/small.ckpt")
        for scope in ("all", "new"):
            settings = dict(optimizer="transfer", warmup_scope=scope, num_warmup_steps=12)
            straight, ends = fit([14, 11], folder, 3, f"{folder}/small.ckpt", **settings)
            half, _ = fit([14, 11], folder, 2, f"{folder}/small.ckpt", **settings)
            half.save_checkpoint(f"{folder}/half.ckpt")
            resumed, again = fit([14, 11], folder, 3, f"{folder}/half.ckpt", **settings)
            if trainer.is_global_zero:
                same = all(torch.equal(item, again.trained[name]) for name, item in ends.trained.items())
                moved = not torch.equal(again.weights["net.0.weight"], again.trained["net.0.weight"])
                print(json.dumps(dict(scope=scope, same=same, moved=moved)))
    """,
    )
    assert found == [{"scope": scope, "same": True, "moved": True} for scope in ("all", "new")]


@pytest.mark.parametrize(
    ("hidden_dims", "settings", "message"),
    [
        ("[5, 7]", "{}", "source has 9"),
        ("[14, 11]", "{}", "holds what may be a copy of the weights"),
        ("[13, 10]", "{'schedule': 'cosine', 'scheduler': 'keep'}", "the checkpoint has 0 schedulers"),
    ],
)
def test_a_refusal_reaches_every_process_and_changes_nothing(tmp_path, hidden_dims, settings, message):
    found = run(
        tmp_path,
        f"""
        folder = sys.argv[1]
        trainer, _ = fit([9, 7], folder, 1)
        trainer.save_checkpoint(f"{{folder}}/small.ckpt")
        if {hidden_dims} == [14, 11] and trainer.is_global_zero:
            checkpoint = torch.load(f"{{folder}}/small.ckpt", weights_only=True)
            checkpoint["average"] = {{"first": checkpoint["state_dict"]["net.0.weight"].clone()}}
            torch.save(checkpoint, f"{{folder}}/small.ckpt")
        trainer.strategy.barrier()
        before = {{}}
        class Before(Sharded):
            def configure_optimizers(self):
                before.update({{name: whole(item) for name, item in self.state_dict().items()}})
                before["module"] = self
                return super().configure_optimizers()
        Sharded = Before
        try:
            fit({hidden_dims}, folder, 2, f"{{folder}}/small.ckpt", **{settings})
        except RefusedGrowth as error:
            module = before.pop("module")
            same = all(torch.equal(whole(item), before[name]) for name, item in module.state_dict().items())
            print(json.dumps(dict(error=str(error), same=same)))
    """,
    )
    assert found
    assert message in found[0]["error"]
    assert found[0]["same"]


def test_stages_inside_a_fit_are_refused_with_a_way(tmp_path):
    found = run(
        tmp_path,
        """
        try:
            fit([9, 7], sys.argv[1], 1, stages=[{"hidden_dims": [14, 11]}])
        except RefusedGrowth as error:
            print(json.dumps(dict(error=str(error))))
    """,
    )
    assert "not under ModelParallelStrategy. Train each stage in a run of its own" in found[0]["error"]
