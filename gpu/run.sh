#!/usr/bin/env bash
# Tests and measures on a machine with a GPU what gpu/bundle built; nothing else is needed there but NVIDIA's driver, and
# python3, compute-sanitizer and ncu for the phases that use them. Run it from the tree that the bundle was built from.
#
#     target/gpu/run.sh [--limit SECONDS] [PHASE ...]
#
#   doctor      the device, and its read bandwidth and matrix rate
#   tests       all tests that use a GPU, with REQUIRE_GPU=1; each family is a process, since a fault ends what a process can do there
#   model       the trained model, on the device against the reference (if it came along)
#   bench       kernels, each with its share of the limit
#   request     whole requests of the 1.7B shape: context 1000 and 5000, width 256, 3 codes, in batches; 2,465 tokens, width 50, 4 codes
#   decode      prefill and decoding at the shapes of Qwen3 0.6B, 1.7B, 8B and Llama 1B
#   start       from the start of the server to ready, and to the first token, with a model of 1.7B in the page cache
#   peers       PyTorch (and transformers, where it is installed) at the same shapes: benches/peers/gpu.py
#   profile     one launch of each kernel that matters, as ncu sees it
#   memcheck, racecheck, initcheck, synccheck
#               kernel tests under compute-sanitizer, its summary asserted
#
# A phase that fails does not keep the next from running; the exit code is 1 if any failed. All of them share the limit (570 s), and each
# command within a phase has PART seconds at most (150): what begins too late or takes too long is cut off and counts as failed. For half an
# hour of a borrowed machine, ten minutes a call, what tells most first:
#
#     target/gpu/run.sh doctor tests model
#     BENCH="boundary product attention sid_step/32xw64/v8192x3 head/32xw64/v8192x3/uniform sample" target/gpu/run.sh bench
#     target/gpu/run.sh request decode start
#     target/gpu/run.sh peers profile
#     target/gpu/run.sh memcheck racecheck
#
# OUT: folder for results.md and log.txt (target/gpu/out), both written as it goes. TESTS, KERNEL_TESTS, BENCH: names to choose by, several
# with spaces between them. PROFILE: KERNEL=BENCH pairs. PEERS: parts of the peers.
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

# What the binaries were built from.
sources() { find build.rs Cargo.lock Cargo.toml kernels src tests benches -path benches/results -prune -o -type f -not -name '*.pyc' -print | LC_ALL=C sort | xargs cat | sha256sum; }

limit=570
phases=()
while [ $# -gt 0 ]; do
    case "$1" in
        --limit) limit="$2"; shift 2 ;;
        --sources) sources; exit ;;
        -h | --help) sed -n '2,/^set /p' "$here/run.sh" | sed '$d; s/^# \{0,1\}//'; exit ;;
        doctor | tests | model | bench | request | decode | start | peers | profile | memcheck | racecheck | initcheck | synccheck) phases+=("$1"); shift ;;
        *) echo "no phase $1; see --help" >&2; exit 2 ;;
    esac
done
cd "$here/../.." || exit 1
if [ "${#phases[@]}" -eq 0 ]; then
    phases=(doctor tests model bench request decode start peers profile memcheck racecheck initcheck synccheck)
fi
if [ "$(sources)" != "$(cat "$here/sources")" ]; then
    echo "error: the bundle was built from other sources; run gpu/bundle again" >&2
    exit 2
fi

out="${OUT:-$here/out}"
part="${PART:-150}"
mkdir -p "$out"
results="$out/results.md"
: >"$out/log.txt"
# Of the phase, and of its last command.
log="$(mktemp)" last="$(mktemp)"
trap 'rm -f "$log" "$last"' EXIT
# Whatever hangs is known to after 20 s.
export REQUIRE_GPU=1 RUST_BACKTRACE=1 SIDEREAL_CUDA_WAIT=20
export CRITERION_HOME="${TMPDIR:-/tmp}/sidereal-criterion"
[ -d "$here/shared" ] && export SIDEREAL_SHARED="$here/shared"

[ -e "$here/sidereal" ] || tar -C "$here" -xzf "$here/binaries.tar.gz"
# The tests look for their files where they were built.
{ read -r built_root; read -r built_server; } <"$here/built-at"
[ -e "$built_root" ] || { mkdir -p "$(dirname "$built_root")" && ln -sfn "$PWD" "$built_root"; }
[ -e "$built_server" ] || { mkdir -p "$(dirname "$built_server")" && ln -sfn "$here/sidereal" "$built_server"; }

tool() {
    command -v "$1" && return
    local place
    for place in "${CUDA_HOME:-/usr/local/cuda}" /usr/local/cuda /opt/cuda; do
        [ -x "$place/bin/$1" ] && echo "$place/bin/$1" && return
        [ -x "$place/$1/$1" ] && echo "$place/$1/$1" && return
    done
    echo "$1 is not on this machine" | say >&2
    return 1
}

# Runs a command within its part and what is left of the limit; output goes to the phase's log and to ours.
say() { tee -a "$log" "$out/log.txt"; }
within() {
    local seconds=$((limit - SECONDS)) code
    if [ "$seconds" -lt 5 ]; then
        echo "cut off: no time left for $*" | say
        return 124
    fi
    [ "$seconds" -gt "$part" ] && seconds="$part"
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$last" | say
    code="${PIPESTATUS[0]}"
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then echo "cut off after $seconds s: $*" | say; fi
    return "$code"
}

# Whether the last command was a test run that passed at least one test and failed none.
passed() { grep -E '^test result: ' "$last" | tail -n 1 | grep -qE 'ok\. [1-9][0-9]* passed; 0 failed'; }

run_doctor() { within "$here/sidereal" doctor && grep -q '^devices .*cuda' "$log"; }
# One test at a time: all of them share the device's memory.
families="kernels::checks kernels::ceilings kernels::embed kernels::norm kernels::rope kernels::products kernels::attention kernels::sample kernels::sid ops:: golden:: on_cuda::"
run_tests() {
    local family code=0
    for family in ${TESTS:-$families}; do
        echo "-- $family" | say
        within "$here/test-it" "$family" --test-threads=1 && passed || code=1
    done
    return "$code"
}
run_model() {
    [ -d "$here/shared" ] || { echo "skipped: the model did not come along" | say; return; }
    within "$here/test-it" on_cuda::the_small_model --nocapture && passed
}
run_bench() {
    local bench family code=0
    for bench in "$here"/bench-*; do
        [ -e "$bench" ] || { echo "no bench came along" | say; return 1; }
        for family in ${BENCH:-boundary product attention sample embed sid_step head/32xw64/v8192x3/uniform}; do
            within "$bench" --bench "$family" || code=1
        done
    done
    return "$code"
}
# $1: shape; the rest: options.
bench_model() {
    within "$here/sidereal" bench model --device cuda --dtype bf16 --random "$@"
}
run_request() {
    local batch code=0 items=1000000 three=8192,8192,8192
    for batch in 1 4 8; do
        bench_model qwen3-1.7b --prompt 1000 --beam-width 256 --levels "$three" --items "$items" --batch "$batch" || code=1
    done
    for batch in 1 8; do
        bench_model qwen3-1.7b --prompt 5000 --beam-width 256 --levels "$three" --items "$items" --batch "$batch" || code=1
    done
    # Requests per second: the batch over its time.
    bench_model qwen3-1.7b --prompt 2465 --beam-width 50 --levels "$three,8192" --items "$items" --batch 32 || code=1
    return "$code"
}
run_decode() {
    local shape code=0
    for shape in qwen3-0.6b qwen3-1.7b qwen3-8b llama-3.2-1b; do
        bench_model "$shape" --prompt 1024 --context 1024 --decode 64 --beam-width 0 || code=1
    done
    for shape in qwen3-1.7b qwen3-8b; do
        bench_model "$shape" --prompt 1024 --context 1024 --decode 64 --beam-width 0 --batch 32 || code=1
    done
    bench_model qwen3-8b --prompt 1024 --context 1024 --decode 32 --beam-width 0 --batch 256 --repeat 1 || code=1
    return "$code"
}
run_start() { tool python3 >/dev/null && within python3 benches/start.py --sidereal "$here/sidereal" --shape 1.7b --device cuda; }
run_peers() {
    python3 -c 'import torch; assert torch.cuda.is_available()' || { echo "skipped: no PyTorch that sees the GPU" | say; return; }
    local peers code=0
    for peers in ${PEERS:-products attention sid request}; do
        within python3 benches/peers/gpu.py "$peers" || code=1
    done
    return "$code"
}
# Reports come back as text; the files are for ncu-ui.
run_profile() {
    local ncu pair kernel bench code=0
    ncu="$(tool ncu)" || return 1
    for pair in ${PROFILE:-skinny=product/1x12288x2048 gemm_hopper=product/2048x12288x2048 attention_narrow=attention/decode attention_hopper=attention/prefill/1x4096 attention_wide=attention/prefill/reproducible/1x4096 sid_score=sid_step/32xw64/v8192x3/uniform sid_select=sid_step/32xw64/v8192x3/uniform}; do
        kernel="${pair%%=*}" bench="${pair#*=}"
        # A bench measures the ceilings first, with kernels of other names; one launch is enough.
        within "$ncu" --clock-control none --set full --kernel-name "regex:$kernel" --launch-skip 4 --launch-count 1 --export "$out/$kernel" --force-overwrite \
            "$here/bench-kernels" --bench "$bench" --profile-time 1 || code=1
        [ -e "$out/$kernel.ncu-rep" ] && within "$ncu" --import "$out/$kernel.ncu-rep" --page details || code=1
    done
    return "$code"
}
# $1: tool, $2: the summary of a run without findings, the rest: its options.
run_sanitizer() {
    local sanitizer name="$1" summary="$2" family code=0
    shift 2
    sanitizer="$(tool compute-sanitizer)" || return 1
    for family in ${KERNEL_TESTS:-kernels::products kernels::attention kernels::sid kernels::sample kernels::norm kernels::rope kernels::embed}; do
        echo "-- $family" | say
        # Every buffer in an allocation of its own, so that an access beyond one is seen. A lookup of a kernel asks one module after the other, and a
        # "not found" is an answer there: the tests hold every call's error themselves.
        SIDEREAL_CUDA_SEPARATE=1 SIDEREAL_CUDA_WAIT=300 within "$sanitizer" --tool "$name" --error-exitcode 99 --report-api-errors no --print-limit 200 "$@" \
            "$here/test-it" "$family" --test-threads=1 && passed && grep -qF "$summary" "$last" || code=1
    done
    return "$code"
}
run_memcheck() { run_sanitizer memcheck 'ERROR SUMMARY: 0 errors'; }
# Whole records are copied to the host, of which only the live part was written.
run_initcheck() { run_sanitizer initcheck 'ERROR SUMMARY: 0 errors' --check-api-memory-access no; }
run_synccheck() { run_sanitizer synccheck 'ERROR SUMMARY: 0 errors'; }
run_racecheck() { run_sanitizer racecheck 'RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'; }

# What the table says of a phase: what failed or was cut off, else the last summary in its log.
summary() {
    local found
    found="$(grep -E '^test result: FAILED|^test .* FAILED$|^cut off|^skipped|is not on this machine|^error|SUMMARY: [1-9]' "$log" | head -n 3)"
    [ -n "$found" ] || found="$(grep -E '^test result: |SUMMARY: ' "$log" | tail -n 1)"
    printf '%s' "$found" | tr '|\n' '/ ' | cut -c 1-200
}

# Criterion's figures as rows: an id stands before "time:" or, if long, on the line above.
figures() {
    awk '
        function rows(line,   at, parts) { at = index(line, "["); split(substr(line, at + 1), parts, " "); return parts[3] " " parts[4] }
        /time: +\[/ { split($0, head, /time: +\[/); name = head[1]; gsub(/^ +| +$/, "", name); if (name == "") name = id; time[name] = rows($0); order[++n] = name; last = name; next }
        /thrpt: +\[/ { rate[last] = rows($0); next }
        /^[^ ]/ { id = $1 }
        END { for (i = 1; i <= n; i++) printf "| %s | %s | %s |\n", order[i], time[order[i]], rate[order[i]] }
    ' "$log"
}
# What a phase measured, for results.md.
measured() {
    case "$1" in
        bench) printf '\n## bench\n\n| id | median | rate |\n|---|---:|---:|\n'; figures; echo; grep -E 'of (the )?(limit|read|matrix)' "$log" | sed 's/^/    /' ;;
        doctor | request | decode | start | peers) printf '\n## %s\n\n' "$1"; sed 's/^/    /' "$log" | head -n 200 ;;
    esac
}

failed=0
{
    echo "# $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 || echo "no GPU")"
    echo
    echo "$(date -u +%Y-%m-%d), commit $(cat "$here/commit"), \`target/gpu/run.sh ${phases[*]}\`"
} >"$results"
for phase in "${phases[@]}"; do
    printf '\n== %s\n' "$phase" | tee -a "$out/log.txt"
    : >"$log"
    begun=$SECONDS
    if "run_$phase"; then verdict=passed; else verdict=FAILED failed=1; fi
    echo "$phase: $verdict" | tee -a "$out/log.txt"
    # At once: a run that is cut off leaves what it has seen.
    { measured "$phase"; printf '\n**%s: %s** in %d s. %s\n' "$phase" "$verdict" $((SECONDS - begun)) "$(summary)"; } >>"$results"
done
printf '\n'
cat "$results"
exit "$failed"
