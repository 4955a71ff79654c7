"""Open exported files by the description that they contain, and run them."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from regnet import digest
from regnet.design.config import AnyNetConfig, RegNetConfig, config_from_dict
from regnet.engines.base import Runner, Target, inference
from regnet.engines.batches import for_any_batch
from regnet.engines.compiled import load_package
from regnet.engines.onnx_runtime import ONNXRuntime, load_onnx
from regnet.engines.openvino import OpenVINO, core, run_openvino
from regnet.engines.served import pixels_of
from regnet.errors import ConfigError, EngineError, MissingExtraError, NotFoundError, in_one_line
from regnet.nn.features import Described
from regnet.nn.model import AnyNet
from regnet.paths import expanded
from regnet.weights.card import Card
from regnet.zoo.create import create
from regnet.zoo.resolver import is_exported

KEY: Final = "regnet"
"""Key of the metadata in which an exported file describes itself."""

CPU: Final = torch.device("cpu")


class FileNetwork(Described):
    """A network in an exported file, for inference on the CPU: normalized images in, logits out.

    If the file takes pixels, images are converted to pixels, and the logarithms of its
    probabilities are returned as logits.
    """

    def __init__(
        self,
        path: Path,
        runner: Runner,
        shape: tuple[int | None, ...],
        facts: Mapping[str, Any],
    ) -> None:
        """Wrap a file that was opened.

        Args:
            path: the file.
            runner: runs the network in the file.
            shape: shape of the file's input; None for each free size.
            facts: the description that the file contains.
        """
        super().__init__()
        self.pixels = facts.get("input") == "uint8"
        if self.pixels:
            shape = (shape[0], shape[3], shape[1], shape[2])
        self.path, self.shape = path, shape
        """Shape of the images (N, C, H, W); None for each free size."""
        self._config: AnyNetConfig | RegNetConfig = config_from_dict(facts["config"])
        self.card = Card.from_timm(facts)
        self.outputs = tuple(facts.get("outputs", ("logits",)))
        """Names of the outputs."""
        self.runtime = str(facts.get("runtime", path.suffix.removeprefix(".")))
        self.precision = str(facts.get("precision", "fp32"))
        self._runner = for_any_batch(runner, shape[0]) if shape[0] else runner
        # `digest_of` hashes a network's tensors; with this buffer it depends on the file.
        self.register_buffer("digest", torch.tensor(list(bytes.fromhex(_digest(path)))))
        self.eval()

    @property
    def config(self) -> AnyNetConfig | RegNetConfig:
        """The config of the network that was exported."""
        return self._config

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if the file returns feature maps."""
        return self.config.num_classes if len(self.outputs) == 1 else 0

    def forward(self, x: Tensor) -> Any:
        """Return the file's output, or a tuple if it has several outputs."""
        for name, size, given in zip(
            ("channels", "height", "width"), self.shape[1:], x.shape[1:], strict=True
        ):
            if size not in (None, given):
                raise ConfigError(
                    f"{self.path} takes images of {name} {size}, got {given}; export the network "
                    "again with the size that you need, or with free sizes (dynamic=True)"
                )
        if not self.pixels:
            return self._run(x)
        assert self.card is not None
        found = self._run(pixels_of(x.float(), self.card.preprocess.for_channels(x.shape[1])))
        return found.clamp_min(torch.finfo(found.dtype).tiny).log()

    def _run(self, x: Tensor) -> Any:
        try:
            return self._runner(x)
        except Exception as error:
            raise EngineError(
                f"{self.path} cannot run on an input of shape {tuple(x.shape)}: "
                f"{in_one_line(error, most=200)}"
            ) from error


def open_model(name: str, *, trust: bool = False) -> AnyNet | FileNetwork:
    """Open the network that a name stands for, with weights: an exported file, or as `create` does.

    Args:
        name: a name as `create` takes it, or the path of an .onnx, .xml or .pt2 file.
        trust: open .pt2 files as well, which can run code.

    Raises:
        ConfigError: the file was not written by `regnet export`, is damaged, or needs `trust`.
        MissingExtraError: the package that runs the file is not installed.
        RegNetError: there is no such model; see `create`.
    """
    if not is_exported(name):
        return create(name, pretrained=True)
    return open_file(expanded(name), trust=trust)


def open_file(path: Path, *, trust: bool = False) -> FileNetwork:
    """Open an exported file.

    Raises:
        ConfigError: the file was not written by `regnet export`, is damaged, or needs `trust`.
        MissingExtraError: the package that runs the file is not installed.
        NotFoundError: there is no such file.
    """
    opener = _OPENERS[path.suffix.lower()]
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    if opener.runs_code and not trust:
        raise ConfigError(
            f"{path} can run code when it is opened, as all .pt2 files can; if you trust its "
            "author, pass --trust (trust=True)"
        )
    if opener.engine and (obstacle := opener.engine.obstacle(Target(device=CPU))):
        raise MissingExtraError(f"{path}: {obstacle}")
    try:
        runner, shape, text = opener.open(path)
    except ConfigError:
        raise
    except Exception as error:  # a runtime may raise anything
        raise ConfigError(f"{path} cannot be opened: {in_one_line(error, most=200)}") from error
    try:
        facts = json.loads(text or "")
        return FileNetwork(path, runner, shape, facts)
    except ConfigError as error:
        raise ConfigError(f"{path}: its description cannot be used: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} does not say which images it takes: it has no usable metadata under {KEY!r}; "
            "only networks of this library that `regnet export` wrote have it, not modules around "
            "them"
        ) from error


Opened = tuple[Runner, tuple[int | None, ...], str | None]
"""The runner of a file, the shape of its input, and its description as JSON."""


def _open_onnx(path: Path) -> Opened:
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            weights = path.parent / entry.value
            if weights.name != entry.value or weights.is_symlink():
                raise ConfigError(
                    f"{path}: it refers to weights in {entry.value!r}, outside its folder; export "
                    "the network again"
                )
            _check_weights(path, weights)
    [images] = model.graph.input
    sizes = images.type.tensor_type.shape.dim
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)
    said = {entry.key: entry.value for entry in model.metadata_props}
    return load_onnx(path, Target(device=CPU)), shape, said.get(KEY)


def _check_weights(path: Path, weights: Path) -> None:
    if not weights.is_file():
        raise NotFoundError(f"{path}: its weights, {weights.name}, are not beside it; copy both")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _open_openvino(path: Path) -> Opened:
    # The file of weights is named, so that OpenVINO does not look for another one.
    weights = path.with_suffix(".bin")
    _check_weights(path, weights)
    model = core().read_model(path, weights)
    text = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None
    [images] = model.inputs
    shape = tuple(None if size.is_dynamic else size.get_length() for size in images.partial_shape)
    return run_openvino(model, Target(device=CPU)), shape, text


def _open_torch(path: Path) -> Opened:
    with zipfile.ZipFile(path) as archive:
        package = any("aotinductor" in name for name in archive.namelist())
    if package:
        loaded: Any = torch._inductor.aoti_load_package(str(path))
        text = loaded.get_metadata().get(KEY)
        said = json.loads(text) if text else {"shape": (None,) * 4}
        if "shape" not in said:
            raise ConfigError(
                f"{path} was written by an earlier version, which did not record the size of its "
                "images; export the network again"
            )
        return load_package(path, Target(device=CPU)), tuple(said["shape"]), text
    extra: dict[str, Any] = {KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    [name] = program.graph_signature.user_inputs
    [images] = [node for node in program.graph.nodes if node.name == name]
    sizes = images.meta["val"].shape
    shape = tuple(size if isinstance(size, int) else None for size in sizes)
    text = extra[KEY]
    text = text.decode() if isinstance(text, bytes) else text
    return inference(program.module()), shape, text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opener:
    open: Callable[[Path], Opened]
    engine: ONNXRuntime | OpenVINO | None = None
    runs_code: bool = False


_OPENERS: Final[Mapping[str, _Opener]] = {
    ".onnx": _Opener(open=_open_onnx, engine=ONNXRuntime()),
    ".xml": _Opener(open=_open_openvino, engine=OpenVINO()),
    ".pt2": _Opener(open=_open_torch, runs_code=True),
}
"""How to open files, by suffix: those of `regnet.zoo.resolver.EXPORTED_SUFFIXES`."""


def _digest(path: Path) -> str:
    """Return a SHA-256 over the file and the files of its weights beside it."""
    beside = (path.with_suffix(".bin"), path.with_name(path.name + ".data"))
    return digest.of_json([digest.of_file(p) for p in (path, *beside) if p.is_file()])
