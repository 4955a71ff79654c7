"""The explorer's page, built with gradio."""

from html import escape
from pathlib import Path
from typing import Any, Final

import gradio as gr

from regnet import digest
from regnet.app import explore, reports, temporary_folder
from regnet.app.guard import framed
from regnet.data.images import open_image
from regnet.design.config import RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError, RegNetError
from regnet.prediction.images import DEFAULT_MODEL, predict
from regnet.selection.device import LEARNED_ENGINE, Learned, learn
from regnet.zoo.listing import list_models

# Fonts of the system, because gradio's default fonts would be downloaded.
THEME: Final = gr.themes.Default(font="system-ui", font_mono="monospace")
CSS: Final = """
#widths svg { width: 100%; height: auto; background: #fff }
.gradio-container { max-width: 1400px !important; margin: 0 auto }
"""

_START: Final = "regnety_016"
_PARAMETERS: Final = (
    # Label, minimum, maximum, step and description of each slider, in the order of `_shown`.
    ("w0", 8, 352, 8, "width of the first block, before rounding"),
    ("wa", 0, 256, 0.01, "slope of the line: width added by each block"),
    ("wm", 1.1, 3.5, 0.01, "ratio of the widths of neighbouring stages"),
    ("d", 1, 64, 1, "blocks"),
    ("g", 1, 328, 1, "group width of the 3x3 convolutions"),
)
_RATIOS: Final = [("1/4 (inverted)", 0.25), ("1/2", 0.5), ("1", 1.0), ("2", 2.0), ("4", 4.0)]


def build() -> gr.Blocks:
    """Build the page; `launch` serves it."""
    page: gr.Blocks
    with gr.Blocks(
        title="RegNet explorer", analytics_enabled=False, delete_cache=(3600, 3600)
    ) as page:
        gr.Markdown("# RegNet explorer")
        with gr.Tab("Design"):
            _design(page)
        with gr.Tab("Classify"):
            _classify()
        with gr.Tab("Reports"):
            _reports()
    return page


def _design(page: gr.Blocks) -> None:
    start = _values(_START)
    device = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            names = gr.Dropdown(
                [name for name in VARIANTS if _parameterized(name)],
                value=_START,
                label="Start from a published network",
            )
            sliders = [
                gr.Slider(low, high, value=value, step=step, label=label, info=text)
                for (label, low, high, step, text), value in zip(_PARAMETERS, start, strict=False)
            ]
            with gr.Row():
                ratio = gr.Dropdown(
                    _RATIOS,
                    value=start[5],
                    label="b",
                    info="block width / bottleneck width",
                )
                excite = gr.Slider(
                    0,
                    1,
                    value=start[6],
                    step=0.05,
                    label="se",
                    info="squeeze-excitation; 0: none",
                )
            size = gr.Slider(32, 512, value=224, step=32, label="image", info="side in pixels")
        with gr.Column(scale=3, min_width=480):
            told = gr.Markdown(elem_id="told")
            plot = gr.HTML(elem_id="widths")
            stages = gr.Dataframe(
                headers=list(explore.STAGE_COLUMNS), interactive=False, elem_id="stages"
            )
            with gr.Row():
                cost = gr.Dataframe(
                    headers=list(explore.COST_COLUMNS), interactive=False, elem_id="cost"
                )
                with gr.Column():
                    latency = gr.Markdown(elem_id="latency")
                    measure = gr.Button("Learn this device (about a minute)", elem_id="learn")
            near = gr.Dataframe(
                headers=list(explore.NEAR_COLUMNS), interactive=False, elem_id="near"
            )
            with gr.Accordion("Config, usable as the name of a model", open=False):
                code = gr.Code(language="json", elem_id="config")
                file = gr.DownloadButton("Download", elem_id="download")
    inputs = [*sliders, ratio, excite, size, device]
    outputs = [told, plot, stages, cost, latency, near, code, file]
    names.input(_values, names, [*sliders, ratio, excite], show_progress="hidden")
    controls: list[Any] = [*sliders, ratio, excite, size]
    for control in controls:
        control.change(_shown, inputs, outputs, show_progress="hidden", trigger_mode="always_last")
    page.load(_shown, inputs, outputs, show_progress="hidden")
    measure.click(_learned, size, device, show_progress_on=latency).then(
        _shown, inputs, outputs, show_progress="hidden"
    )


def _parameterized(name: str) -> bool:
    """Whether the controls can represent a published network."""
    config = VARIANTS[name].config
    if not isinstance(config, RegNetConfig) or _config(*_values(name)) != config:
        return False
    controls = zip(_PARAMETERS, _values(name), strict=False)
    return all(low <= value <= high for (_, low, high, _, _), value in controls)


def _config(
    w0: float,
    wa: float,
    wm: float,
    depth: float,
    group_width: float,
    ratio: float,
    se_ratio: float,
) -> RegNetConfig:
    """Return the network of these parameters; other settings have their defaults."""
    return RegNetConfig(
        w0=round(w0),
        wa=wa,
        wm=wm,
        depth=round(depth),
        group_width=round(group_width),
        bottleneck_ratio=ratio,
        se_ratio=se_ratio,
    )


def _values(name: str) -> list[float]:
    """Return the parameters of a published network, in the order of the controls."""
    c = VARIANTS[name].config
    assert isinstance(c, RegNetConfig)
    return [c.w0, c.wa, c.wm, c.depth, c.group_width, c.bottleneck_ratio, c.se_ratio]


def _shown(*given: Any) -> tuple[Any, ...]:
    """Return the content of all outputs; for parameters that fit no network, only the reason.

    Args:
        given: the values of the controls: those of `_config`, the image size, and the learned
            device, if any.
    """
    *parameters, side, device = given
    size = round(side)
    try:
        config = _config(*parameters)
        tables = (explore.stage_table(config), explore.cost_table(config, size))
    except ConfigError as error:
        return (f"⚠ {escape(str(error))}", "", [], [], "", [], "", None)
    return (
        f"{len(config.depths)} stages, widths {list(config.widths)}, depths {list(config.depths)}",
        explore.drawing(config),
        *tables,
        _latency(config, size, device),
        explore.nearest(config, size),
        config.to_json(),
        str(_file(config)),
    )


def _latency(config: RegNetConfig, size: int, device: Learned | None) -> str:
    if device is None:
        return "The latency on this device has not been learned yet."
    if device.image_size != size:
        return (
            f"The latency was learned for images of {device.image_size} pixels; learn this device "
            "again."
        )
    return (
        f"**{device.predict(config):.1f} ms** predicted on this device, batch 1 "
        f"({LEARNED_ENGINE} fp32); "
        f"off by {device.error(config):.0%} (median over networks that the fit left out in turn)."
    )


def _learned(size: float, progress: gr.Progress = gr.Progress()) -> Learned:  # noqa: B008 - gradio recognizes this default
    try:
        return learn(round(size), on_step=lambda *steps: progress(steps, desc="measuring networks"))
    except RegNetError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error


def _file(config: RegNetConfig) -> Path:
    """Write the config to a file for the download, and return its path."""
    text = config.to_json()
    path = temporary_folder() / f"regnet-{digest.of_bytes(text.encode())[:10]}.json"
    path.write_text(text, encoding="utf-8")
    return path


def _classify() -> None:
    with gr.Row():
        with gr.Column():
            photo = gr.File(label="Photo", type="filepath", elem_id="photo")
            name = gr.Dropdown(
                _free_weights(),
                value=DEFAULT_MODEL,
                allow_custom_value=True,
                label="Weights",
                info="all but the first are downloaded on first use",
            )
        with gr.Column():
            seen = gr.Image(
                label="Photo as decoded", interactive=False, height=320, buttons=["fullscreen"]
            )
            label = gr.Label(label="Classes", num_top_classes=5, elem_id="classes")
    for event in (photo.upload, name.input):
        event(_classified, [photo, name], [seen, label])
    photo.clear(lambda: (None, None), outputs=[seen, label])


def _free_weights() -> list[str]:
    return [DEFAULT_MODEL, *list_models(pretrained=True, license="commercial", sort="top1")]


def _classified(photo: str | None, name: str) -> tuple[Any, Any]:
    if photo is None:
        return None, None
    try:
        image = open_image(photo)
        [result] = predict(photo, name)
    except (RegNetError, OSError) as error:
        _warn(str(error).replace(photo, Path(photo).name))
        return None, None
    return image, {score.label: score.probability for score in result.classes}


def _warn(message: str) -> None:
    # Not gr.Error, which would leave the last result on the page as if it belonged to this file.
    # Escaped, because gradio shows the message as HTML, and it may quote the content of a file.
    gr.Warning(escape(message), title="This did not work", duration=None)


def _reports() -> None:
    gr.Markdown(
        "A report that `regnet bench --html` or `regnet study report` wrote, or a document of "
        "`regnet bench --out` (JSON)."
    )
    file = gr.File(label="Report", type="filepath", elem_id="report-file")
    frame = gr.HTML(elem_id="report")
    file.upload(_opened, file, frame)
    file.clear(lambda: "", outputs=frame)


def _opened(path: str) -> str:
    try:
        page = reports.page(Path(path))
    except (RegNetError, OSError) as error:
        _warn(str(error))
        return ""
    # Without allow-same-origin, the frame has an origin of its own, so that its scripts cannot
    # access this page. The policy of `framed` blocks all servers.
    return (
        '<iframe title="report" sandbox="allow-scripts" '
        f'style="width:100%;height:80vh;border:0" srcdoc="{escape(framed(page))}"></iframe>'
    )
