"""`sidereal sid fit` beside faiss-cpu and scikit-learn: residual k-means over the same file, in turns, with the same number of threads.

    pip install numpy faiss-cpu==1.15.1 scikit-learn==1.9.1
    cargo build --release
    python benches/peers/kmeans.py --rounds 3                      # 1,000,000 x 384, a mixture of Gaussians, made if missing
    python benches/peers/kmeans.py --data books.npy --levels 256,256,256

The peers run in processes of their own, as sidereal does: time of the fit and of the codes of all rows without reading the file, and of the whole process;
largest resident size, the mapped file included; mean squared length of what is left after the last level. faiss: Kmeans with its defaults
(25 iterations over 256 rows per centroid), then assignment of all rows. scikit-learn: MiniBatchKMeans, batches of 1,024 (its default) or `--batch`.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time


def make(path, rows, dim, seed):
    """2,000 clusters with sizes by a power law, each with a spread of its own in a subspace of its own, and noise."""
    import numpy as np
    from numpy.lib.format import open_memmap

    rng = np.random.default_rng(seed)
    clusters, inner = 2000, 24
    centres = rng.standard_normal((clusters, dim), dtype=np.float32)
    weights = 1.0 / np.arange(1, clusters + 1) ** 0.8
    bases = rng.standard_normal((50, inner, dim), dtype=np.float32) / dim**0.5
    spread = rng.uniform(1.0, 6.0, clusters).astype(np.float32)
    out = open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
    for first in range(0, rows, 50_000):
        n = min(50_000, rows - first)
        of = rng.choice(clusters, n, p=weights / weights.sum())
        x = centres[of] + 0.5 * rng.standard_normal((n, dim), dtype=np.float32)
        latent = rng.standard_normal((n, inner), dtype=np.float32) * spread[of, None]
        for b in range(50):
            at = of % 50 == b
            x[at] += latent[at] @ bases[b]
        out[first:first + n] = x
    out.flush()


def peer(args):
    """One fit in this process; prints a line of JSON."""
    import numpy as np

    levels = [int(k) for k in args.levels.split(",")]
    start = time.perf_counter()
    x = np.load(args.data)  # the residuals overwrite it: neither library works in place
    loaded = time.perf_counter()
    for level, k in enumerate(levels):
        if args.peer == "faiss":
            import faiss

            faiss.omp_set_num_threads(args.threads)
            means = faiss.Kmeans(x.shape[1], k, seed=args.seed + level)
            means.train(x)
            centres = means.centroids
            _, codes = means.index.search(x, 1)
            codes = codes[:, 0]
        else:
            from sklearn.cluster import MiniBatchKMeans
            from threadpoolctl import threadpool_limits

            with threadpool_limits(args.threads):
                means = MiniBatchKMeans(k, batch_size=args.batch, random_state=args.seed + level, compute_labels=False, n_init=1)
                means.fit(x)
                codes = means.predict(x)
            centres = means.cluster_centers_
        for first in range(0, len(x), 50_000):
            x[first:first + 50_000] -= centres[codes[first:first + 50_000]]
    seconds = time.perf_counter() - loaded
    error = float(np.mean([np.einsum("ij,ij->", x[i:i + 50_000], x[i:i + 50_000], dtype=np.float64) for i in range(0, len(x), 50_000)])) \
        if len(x) % 50_000 == 0 else float(np.einsum("ij,ij->", x, x, dtype=np.float64))
    error = error / 50_000 if len(x) % 50_000 == 0 else error / len(x)
    print(json.dumps({"seconds": seconds, "whole": time.perf_counter() - start, "error": error,
                      "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def run(args, what):
    if what == "sidereal":
        out = f"/tmp/kmeans-{os.getpid()}"
        command = [args.binary, "sid", "fit", args.data, "--levels", args.levels, "--out", out + ".safetensors", "--codes", out + ".npy",
                   "--threads", str(args.threads), "--seed", str(args.seed), "--json"]
    else:
        command = [sys.executable, __file__, "--peer", what, "--data", args.data, "--levels", args.levels, "--threads", str(args.threads),
                   "--seed", str(args.seed), "--batch", str(args.batch)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), OPENBLAS_NUM_THREADS=str(args.threads))
    timed = ["/usr/bin/env", "time", "-v"] + command if what == "sidereal" and args.time else command
    start = time.perf_counter()
    done = subprocess.run(timed, capture_output=True, text=True, env=environment)
    whole = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout)
    if what == "sidereal":
        peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
        found = found["types"][0]
        return {"seconds": found["seconds"], "whole": whole, "error": found["levels"][len(args.levels.split(",")) - 1]["error"],
                "rss": int(peak[1]) / 1024 if peak else found["peak_mib"]}
    return dict(found, whole=whole)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/sidereal")
    parser.add_argument("--data", default="/tmp/kmeans-1m.npy")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--levels", default="256,256,256,256")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", default="sidereal,faiss,sklearn")
    parser.add_argument("--peer")
    parser.add_argument("--time", action="store_true", help="take sidereal's peak from GNU time instead of its own report")
    args = parser.parse_args()
    if args.peer:
        return peer(args)
    if not os.path.exists(args.data):
        make(args.data, args.rows, args.dim, 1)
    rows = {}
    for _ in range(args.rounds):
        for what in args.systems.split(","):
            rows.setdefault(what, []).append(run(args, what))
            print(what, rows[what][-1], "load", os.getloadavg()[0], file=sys.stderr, flush=True)
    print("| system | seconds (all rounds) | whole process | error | peak MiB |\n|---|---|---|---|---|")
    for what, runs in rows.items():
        middle = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        each = " ".join(f"{r['seconds']:.1f}" for r in runs)
        print(f"| {what} | {middle['seconds']:.1f} ({each}) | {middle['whole']:.1f} | {middle['error']:.4f} | {middle['rss']:.0f} |")


if __name__ == "__main__":
    main()
