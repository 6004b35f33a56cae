from mm1_hf.data.documents import Document, ImagePart, Unusable


def _documents(record, name):
    if record["parts"] is None:
        raise Unusable("not a record", name)
    return Document(
        record["kind"],
        tuple(ImagePart(p["image"]) if p["image"] is not None else p["text"] for p in record["parts"]),
        name,
    )


LAYOUTS = {"documents": _documents}
