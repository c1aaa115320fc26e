"""A store of recorded teacher data: records, labels, provenance, and a check of every byte."""

import streamlit as st
import torch

from fewstep.errors import InputError
from fewstep.formatting import quantity
from fewstep.images import to_uint8
from fewstep.store import Reader, iter_verify
from fewstep.studio import controls, pictures, toys
from fewstep.studio.session import Session, view

PAGE = 32
"""Records on a page."""
MAX_COUNTED = 4096
MAX_DAMAGES = 20


@view
def show(session: Session) -> None:
    """Draw the view."""
    names = [entry.name for entry in session.workshop.catalogue.entries("store")]
    if not names:
        raise InputError("there are no stores here: record one with `fewstep record RUN --out DIR`")
    entry = session.entry("store", names)
    if st.button("Check every byte", icon=":material/verified:", key="check"):
        _verify(entry.address)
    reader = Reader(entry.address)
    size = sum(shard.bytes for shard in reader.manifest.shards)
    shards = quantity(len(reader.manifest.shards), "shard")
    st.markdown(f"**{quantity(len(reader), 'record')}** in {shards}, {size / 1e6:,.1f} MB")
    records, about = st.columns([3, 2])
    with about:
        _draw_origin(reader)
    with records:
        _draw_records(reader)
        _draw_labels(reader)


def _draw_records(reader: Reader) -> None:
    pages = -(-len(reader) // PAGE)
    if controls.current().page > pages:
        controls.change(page=pages)
    page = controls.control("page", st.number_input, f"page, of {pages:,}", 1, pages, step=1)
    first = (page - 1) * PAGE
    rows = reader[list(range(first, min(first + PAGE, len(reader))))]
    image = next((name for name in ("x0", "image") if name in rows), None)
    if image is not None and rows[image].ndim == 4:
        sheet = pictures.sheet(to_uint8(rows[image].float()), columns=8, width=560)
        st.image(pictures.data_url(sheet, {"store_hash": reader.hash, "first_record": str(first)}))
    elif image is not None and rows[image].ndim == 2:
        st.image(pictures.data_url(toys.scatter(rows[image].float())))
    last = min(first + PAGE, len(reader)) - 1
    st.caption(f"records {first:,} to {last:,}")
    # as text: browsers round integers beyond 2⁵³, and seeds are larger
    numbers = {name: list(map(str, rows[name].tolist())) for name in rows if rows[name].ndim == 1}
    prompts = reader.provenance.get("prompts")
    if isinstance(prompts, list) and "prompt" in numbers:
        texts = dict(zip(map(str, range(len(prompts))), map(str, prompts), strict=True))
        numbers["prompt"] = [texts.get(number, number) for number in numbers["prompt"]]
    if numbers:
        st.dataframe(numbers, height=220)


def _draw_origin(reader: Reader) -> None:
    st.markdown("provenance")
    st.json(dict(reader.provenance), expanded=1)
    st.markdown("schema")
    st.json({name: codec.describe() for name, codec in reader.schema.items()}, expanded=1)
    st.caption(f"SHA-256 of the content: {controls.code(reader.hash)}")


def _draw_labels(reader: Reader) -> None:
    """How many of the first records have each label."""
    if "label" not in reader.schema:
        return
    count = min(len(reader), MAX_COUNTED)
    labels = reader[slice(0, count)]["label"]
    if labels.ndim > 1 or labels.is_floating_point() or labels.max() >= MAX_COUNTED:
        return  # no classes that a chart could count
    numbers = torch.bincount(labels[labels >= 0]).tolist()
    st.caption(f"labels of the first {count:,} records" if count < len(reader) else "labels")
    st.bar_chart({"records": numbers}, height=160)


def _verify(address: str) -> None:
    """Check the store shard by shard, and list its damages."""
    bar, damages = st.progress(0.0), []
    for step in iter_verify(address):
        damages += step.lines
        bar.progress(step.done / step.total if step.total else 1.0)
    for line in damages[:MAX_DAMAGES]:
        st.error(controls.plain(line))
    if damages:
        st.error(f"{quantity(len(damages), 'damage')} in all")
    else:
        st.success("Every byte is as it was recorded.")
