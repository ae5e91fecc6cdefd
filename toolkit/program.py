"""What every entry point of a recipe does around its work: Hydra's config becomes a `Config`, errors become one line."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from toolkit.config import Config, register


def program(work: Callable[[Config], object]) -> Callable[[DictConfig], None]:
    """Decorate a function of a `Config` so that `hydra.main` can call it.

        @hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
        @program
        def main(config: Config) -> None: ...

    Errors that a user can mend (bad values, missing files, no memory) end the program with one line and status 1, Ctrl-C with
    status 130. HYDRA_FULL_ERROR=1 shows the whole traceback instead.
    """
    register()

    @functools.wraps(work)
    def main(cfg: DictConfig) -> None:
        name = HydraConfig.get().job.name
        try:
            config = OmegaConf.to_object(cfg)
            assert isinstance(config, Config)
            work(config)
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted; run the same command again, it goes on", file=sys.stderr)
            sys.exit(130)
        except (ValueError, AttributeError, RuntimeError, OSError) as error:
            if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
                raise
            sys.exit(f"{name}: {error}\n(HYDRA_FULL_ERROR=1 shows where)")

    return main
