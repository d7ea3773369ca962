__version__ = "0.1.0"

# What the outside relies on. Each name is loaded from its module when it is first used, so `import trustdd` costs next to nothing.
_HOME = {
    "Experiment": "config", "UserError": "config", "PRESETS": "config", "stream": "config",
    "Dataset": "dataset", "from_tensors": "dataset", "load_dataset": "data", "load_ood": "data", "load_aux": "data", "ood_suite": "data",
    "build_network": "networks", "corrupt": "poe",
    "DistilledSet": "distillation", "distill": "distillation",
    "import_set": "importing",
    "train": "training", "evaluate": "evaluation", "Report": "report",
    "ood_metrics": "ood", "SCORES": "ood",
    "load_or_run": "runs", "run_all": "runs", "run_buffer": "runs", "Run": "runs", "publish": "runs",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    from importlib import import_module
    if name not in _HOME: raise AttributeError(f"module 'trustdd' has no attribute {name!r}")
    return getattr(import_module(f"trustdd.{_HOME[name]}"), name)


def __dir__(): return __all__
