"""A Hydra application of one's own: the Trainer's callbacks are built from the config, ArchTransfer among them.

python examples/hydra_app.py
python examples/hydra_app.py model.hidden_dims=[64,64] trainer.max_epochs=4 ckpt_path=hydra_app/last.ckpt
"""

import hydra
import lightning
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from lightning_cli import Regression
from omegaconf import DictConfig, OmegaConf

CONFIG = """
ckpt_path: null
model:
  hidden_dims: [16, 16]
trainer:
  _target_: lightning.Trainer
  max_epochs: 2
  accelerator: cpu
  logger: false
  log_every_n_steps: 1
  callbacks:
    - _target_: lightning_grow.ArchTransfer
      strategy: preserve
    - _target_: lightning.pytorch.callbacks.ModelCheckpoint
      dirpath: hydra_app
      save_last: true
      enable_version_counter: false
hydra:
  output_subdir: null
  run:
    dir: .
"""
ConfigStore.instance().store("config", OmegaConf.create(CONFIG))


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(config: DictConfig) -> None:
    lightning.seed_everything(1, verbose=False)
    model = Regression(**OmegaConf.to_container(config.model))  # plain lists: they are saved as hyperparameters
    trainer = instantiate(config.trainer, _convert_="all")
    trainer.fit(model, ckpt_path=config.ckpt_path)
    print(f"epoch {trainer.current_epoch}, loss {trainer.callback_metrics['loss']:.3f}")


if __name__ == "__main__":
    main()
