"""A few synthetic images and outliers that teach a network what it knows and what it does not."""
__version__ = "0.2.0.dev0"

# What you need from outside. Each name is loaded from its module when you first use it, so that
# `import trustdd` costs next to nothing.
_HOME = {
    "core.checks": "UserError",
    "core.experiment": "Experiment PRESETS Settings",
    "core.randomness": "stream",
    "data.dataset": "Dataset from_tensors",
    "data.catalog": "load_dataset load_ood load_aux",
    "data.own": "corruption ood_set aux_set",
    "data.suites": "ood_suite ood_group",
    "data.poe": "corrupt POEPool OEPool outlier_pool",
    "data.distilled_set": "DistilledSet",
    "networks.architectures": "build_network",
    "networks.batches": "outlier_loss training_loss",
    "networks.training": "train",
    "distillation.methods": "method Method",
    "distillation.distillation": "distill",
    "distillation.importers": "import_set",
    "evaluation.scores": "ood_metrics score SCORES",
    "evaluation.report": "Report",
    "evaluation.evaluation": "evaluate",
    "evaluation.any_network": "export_scores",
    "evaluation.diagnosis": "diagnose",
    "evaluation.bootstrap": "paired_difference",
    "evaluation.rejector": "Rejector",
    "reproduction.run_store": "Run",
    "reproduction.runs": "load_or_run run_all",
    "reproduction.jobs": "run_buffer",
    "reproduction.publishing": "publish",
    "reproduction.estimate": "estimate",
    "reproduction.comparison": "compare",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = ["__version__", *_MODULE]


def __getattr__(name):
    from importlib import import_module
    if name not in _MODULE: raise AttributeError(f"module 'trustdd' has no attribute {name!r}")
    return getattr(import_module(f"trustdd.{_MODULE[name]}"), name)


def __dir__(): return __all__
