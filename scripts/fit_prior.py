"""Fit the prior of `regnet search` to finished studies, and write it together with its evidence.

    python scripts/fit_prior.py benchmarks/results/{order,principles,ratios}

Each study is a folder with study.json and results.jsonl. Its networks have about equal flops; those
with squeeze-excitation, of which the features say nothing, do not count. The prior is a ridge
regression of the logarithm of the error; the strength of the ridge is chosen by leaving out one
space at a time. The evidence holds rank correlations between predictions and errors, averaged over
spaces in proportion to their numbers of networks: once with each network left out of the fit, and
once with its complete space left out. The prior is also compared with pycls's published networks on
ImageNet, by the part of their errors that flops alone do not explain. The weights are scaled down
where necessary so that the predictions for these networks spread no more than that unexplained part
does.
"""

import argparse
import shutil
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regnet import documents
from regnet.design.complexity import complexity
from regnet.design.config import config_from_dict
from regnet.design.variants import VARIANTS
from regnet.selection.prior import FEATURES, FILE, Prior, features_of_stages, stages_of
from regnet.studies import population
from regnet.studies.statistics import rank_correlation
from regnet.weights.catalog import checkpoints

ROOT = Path(__file__).parents[1]
OUT = ROOT / "src/regnet/selection" / FILE
RIDGES = np.geomspace(1e-2, 1e3, 26)
Array = NDArray[np.float64]


def rows_of(folders: list[Path]) -> tuple[Array, Array, Array, list[str], int]:
    """Return features, log errors, flops and spaces of all trained networks, and the image size."""
    features, errors, flops, spaces, sizes = [], [], [], [], set()
    for folder in folders:
        with tempfile.TemporaryDirectory() as temporary:
            copy = Path(temporary) / "study"
            shutil.copytree(folder, copy)
            population.recover(copy)
            study, found = population.read(copy), population.load(copy)
        for name, each in found.items():
            sizes.add(study.image_size(name))
            for row, error in zip(each.rows, each.errors, strict=True):
                config = config_from_dict(row.config)
                if config.se_ratio:
                    continue
                cost = complexity(config, study.image_size(name))
                features.append(features_of_stages(stages_of(config), cost)[0])
                errors.append(np.log(error))
                flops.append(float(cost.flops))
                spaces.append(name)
    [size] = sizes
    return np.array(features), np.array(errors), np.array(flops), spaces, size


def fitted(x: Array, y: Array, ridge: float) -> tuple[Array, Array, float]:
    """Return the weights of the features, the centers of the features, and the mean of y."""
    center, scale = x.mean(0), x.std(0) + 1e-9
    z = (x - center) / scale
    weights = np.linalg.solve(z.T @ z + ridge * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    return weights / scale, center, float(y.mean())


def left_out(x: Array, y: Array, groups: Array, ridge: float) -> Array:
    """Return the predictions for each group by a fit to all other groups."""
    found = np.empty(len(y))
    for group in np.unique(groups):
        out = groups == group
        weights, center, mean = fitted(x[~out], y[~out], ridge)
        found[out] = mean + (x[out] - center) @ weights
    return found


def by_space(found: Array, y: Array, spaces: Array) -> dict[str, float]:
    """Return the rank correlation of predictions with errors within each space."""
    return {
        str(name): rank_correlation(found[spaces == name], y[spaces == name])
        for name in np.unique(spaces)
        if (spaces == name).sum() > 2
    }


def mean_over(found: dict[str, float], spaces: Array) -> float:
    """Average the correlations, weighted by the number of networks of each space."""
    counts = [int((spaces == name).sum()) for name in found]
    return round(float(np.average(list(found.values()), weights=counts)), 3)


def published() -> dict[str, tuple[Array, float, float]]:
    """Features, flops and log error of pycls's networks without squeeze-excitation, by name."""
    found = {}
    for row in checkpoints().values():
        config = VARIANTS[row.variant].config
        if row.id.endswith(".pycls_in1k") and not config.se_ratio and row.top1:
            cost = complexity(config, 224)
            features = features_of_stages(stages_of(config), cost)[0]
            found[row.variant] = (features, float(cost.flops), float(np.log(100 - row.top1)))
    return found


def main() -> None:
    """Fit the prior, judge it on networks that were left out, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("studies", type=Path, nargs="+")
    parser.add_argument("--images", default="CIFAR-10", help="what the networks were trained on")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    x, y, flops, names, size = rows_of(args.studies)
    spaces, each = np.array(names), np.arange(len(y)).astype(float)
    misses = [float(((left_out(x, y, spaces, r) - y) ** 2).mean()) for r in RIDGES]
    ridge = float(RIDGES[int(np.argmin(misses))])
    networks = by_space(left_out(x, y, each, ridge), y, spaces)
    whole = by_space(left_out(x, y, spaces, ridge), y, spaces)
    weights, center, _ = fitted(x, y, ridge)
    known = published()
    regnets = {name: row for name, row in known.items() if name.startswith("regnetx")}
    logs = np.array([(np.log(f), e) for _, f, e in regnets.values()]).T
    exponent = np.polyfit(*logs, 1)[0]
    # The log error falls more slowly as log flops grow, so the reference curve is a parabola.
    curve = np.polyfit(*logs, 2)
    unexplained = [e - np.polyval(curve, np.log(f)) for _, f, e in known.values()]
    predicted = [float((features - center) @ weights) for features, _, _ in known.values()]
    scale = min(1.0, float(np.std(unexplained) / np.std(predicted)))
    center = np.mean([features for features, _, _ in known.values()], axis=0)
    evidence: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "networks": len(y),
        "spaces": sorted(set(names)),
        "images": args.images,
        "image_size": size,
        "flops": f"{flops.min() / 1e6:.1f} to {flops.max() / 1e6:.1f} million multiply-adds",
        "ridge": ridge,
        "left_out_network": mean_over(networks, spaces),
        "left_out_space": mean_over(whole, spaces),
        "left_out_network_by_space": {name: round(r, 3) for name, r in networks.items()},
        "left_out_space_by_space": {name: round(r, 3) for name, r in whole.items()},
        "published": {
            "networks": sorted(known),
            "scale": round(scale, 3),
            "rank_correlation": round(rank_correlation(predicted, unexplained), 3),
        },
    }
    documents.write(
        args.out,
        Prior(
            weights=tuple(round(scale * float(w), 6) for w in weights),
            center=tuple(round(float(c), 6) for c in center),
            flops_exponent=round(float(exponent), 4),
            evidence=evidence,
        ),
    )
    for name, weight, deviation in zip(FEATURES, weights, x.std(0), strict=True):
        print(f"{name:16} {weight:+.4f} per unit, {weight * deviation:+.4f} per deviation")
    print(documents.read(args.out, "a prior")["evidence"])


if __name__ == "__main__":
    main()
