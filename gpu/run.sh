#!/usr/bin/env bash
# Tests and measures on a machine with a GPU what gpu/bundle built; nothing else is needed there but NVIDIA's driver, and
# compute-sanitizer for the phases that use it. Run it from the tree that the bundle was built from.
#
#     target/gpu/run.sh [--limit SECONDS] [PHASE ...]
#
#   doctor      the device, and its read bandwidth and matrix rate
#   tests       every test, with REQUIRE_GPU=1
#   model       the trained model, on the device against the reference (if it came along)
#   bench       kernels, each with its share of the limit
#   request     whole requests of the 1.7B shape: context 1000 and 5000, width 256, 3 codes, in batches; 2,465 tokens, width 50, 4 codes
#   decode      prefill and decoding at the shapes of Qwen3 0.6B, 1.7B, 8B and Llama 1B
#   peers       PyTorch (and transformers, where it is installed) at the same shapes: benches/peers/gpu.py
#   memcheck, racecheck, initcheck, synccheck
#               kernel tests under compute-sanitizer, its summary asserted
#
# A phase that fails does not keep the next from running; the exit code is 1 if any failed. All of them share the limit (570 s):
# one that begins too late or takes too long is cut off and counts as failed. Choose phases to fit several calls.
# OUT: folder for results.md and log.txt (target/gpu/out). TESTS, KERNEL_TESTS, BENCH: filters of names. PEERS: parts of the peers.
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cd "$here/../.."

limit=570
phases=()
while [ $# -gt 0 ]; do
    case "$1" in
        --limit) limit="$2"; shift 2 ;;
        -h | --help) sed -n '2,/^set /p' "$here/run.sh" | sed '$d; s/^# \{0,1\}//'; exit ;;
        doctor | tests | model | bench | request | decode | peers | memcheck | racecheck | initcheck | synccheck) phases+=("$1"); shift ;;
        *) echo "no phase $1; see --help" >&2; exit 2 ;;
    esac
done
if [ "${#phases[@]}" -eq 0 ]; then
    phases=(doctor tests model bench request decode peers memcheck racecheck initcheck synccheck)
fi

out="${OUT:-$here/out}"
mkdir -p "$out"
results="$out/results.md"
# One log per phase; joined at the end, since few files come back from a borrowed machine.
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
log=/dev/null
export REQUIRE_GPU=1 RUST_BACKTRACE=1
export CRITERION_HOME="${TMPDIR:-/tmp}/sidereal-criterion"
[ -d "$here/shared" ] && export SIDEREAL_SHARED="$here/shared"

[ -e "$here/sidereal" ] || tar -C "$here" -xzf "$here/binaries.tar.gz"
# The tests look for their files where they were built.
{ read -r built_root; read -r built_server; } <"$here/built-at"
[ -e "$built_root" ] || { mkdir -p "$(dirname "$built_root")" && ln -s "$PWD" "$built_root"; }
[ -e "$built_server" ] || { mkdir -p "$(dirname "$built_server")" && ln -s "$here/sidereal" "$built_server"; }

sanitizer() {
    command -v compute-sanitizer && return
    local place
    for place in "${CUDA_HOME:-/usr/local/cuda}" /usr/local/cuda /opt/cuda; do
        [ -x "$place/bin/compute-sanitizer" ] && echo "$place/bin/compute-sanitizer" && return
        [ -x "$place/compute-sanitizer/compute-sanitizer" ] && echo "$place/compute-sanitizer/compute-sanitizer" && return
    done
    return 1
}

# Runs a command within what is left of the limit; output goes to the phase's log and to ours.
left() { echo $((limit - SECONDS)); }
within() {
    local seconds
    seconds="$(left)"
    if [ "$seconds" -lt 5 ]; then
        echo "cut off: no time left" | tee -a "$log"
        return 124
    fi
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee -a "$log"
    local code="${PIPESTATUS[0]}"
    [ "$code" -eq 124 ] && echo "cut off after $seconds s" | tee -a "$log"
    return "$code"
}

# Whether the log's last test run passed at least one test and failed none.
passed() { grep -E '^test result: ' "$log" | tail -n 1 | grep -qE 'ok\. [1-9][0-9]* passed; 0 failed'; }

run_doctor() { within "$here/sidereal" doctor && grep -q '^devices .*cuda' "$log"; }
run_tests() { within "$here/test-it" ${TESTS:+"$TESTS"} && passed; }
run_model() {
    [ -d "$here/shared" ] || { echo "skipped: the model did not come along" | tee -a "$log"; return; }
    within "$here/test-it" on_cuda::the_small_model --nocapture && passed
}
run_bench() {
    local bench code=0
    for bench in "$here"/bench-*; do
        [ -e "$bench" ] || { echo "no bench came along" | tee -a "$log"; return 1; }
        within "$bench" --bench ${BENCH:+"$BENCH"} || code=1
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
    bench_model qwen3-1.7b --prompt 1024 --context 1024 --decode 64 --beam-width 0 --batch 32 || code=1
    bench_model qwen3-8b --prompt 1024 --context 1024 --decode 32 --beam-width 0 --batch 256 --repeat 1 || code=1
    return "$code"
}
run_peers() {
    python3 -c 'import torch; assert torch.cuda.is_available()' || { echo "skipped: no PyTorch that sees the GPU" | tee -a "$log"; return; }
    within python3 benches/peers/gpu.py ${PEERS:-}
}
# $1: tool, $2: the summary of a run without findings.
run_sanitizer() {
    local tool
    tool="$(sanitizer)" || { echo "compute-sanitizer is not on this machine" | tee -a "$log"; return 1; }
    # Every buffer in an allocation of its own, so that an access beyond one is seen. One test at a time: launches are serialised anyway.
    SIDEREAL_CUDA_SEPARATE=1 within "$tool" --tool "$1" --error-exitcode 99 --print-limit 20 \
        "$here/test-it" "${KERNEL_TESTS:-kernels::}" --test-threads=1 || return 1
    passed && grep -qF "$2" "$log"
}
run_memcheck() { run_sanitizer memcheck 'ERROR SUMMARY: 0 errors'; }
run_initcheck() { run_sanitizer initcheck 'ERROR SUMMARY: 0 errors'; }
run_synccheck() { run_sanitizer synccheck 'ERROR SUMMARY: 0 errors'; }
run_racecheck() { run_sanitizer racecheck 'RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)'; }

# What the table says of a phase: the last summary in its log.
summary() { grep -E '^test result: |SUMMARY: |^cut off|^skipped|is not on this machine|^error' "$log" | tail -n 2 | tr '|\n' '/ ' | cut -c 1-160; }

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

failed=0
{
    echo "# $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 || echo "no GPU")"
    echo
    echo "$(date -u +%Y-%m-%d), commit $(cut -c 1-12 "$here/commit"), \`target/gpu/run.sh ${phases[*]}\`"
    echo
    echo '| phase | result | seconds | summary |'
    echo '|---|---|---:|---|'
} >"$results"
for phase in "${phases[@]}"; do
    printf '\n== %s\n' "$phase"
    log="$logs/$phase"
    : >"$log"
    begun=$SECONDS
    if "run_$phase"; then verdict=passed; else verdict=FAILED failed=1; fi
    echo "$phase: $verdict"
    echo "| $phase | $verdict | $((SECONDS - begun)) | $(summary) |" >>"$results"
done
for phase in doctor bench request decode peers; do
    log="$logs/$phase"
    [ -s "$log" ] || continue
    case "$phase" in
        bench) { printf '\n## bench\n\n| id | median | rate |\n|---|---:|---:|\n'; figures; grep -E 'of (the )?(limit|read|matrix)' "$log" | sed 's/^/    /' | sed '1i\\'; } >>"$results" ;;
        *) { printf '\n## %s\n\n' "$phase"; sed 's/^/    /' "$log" | head -n 160; } >>"$results" ;;
    esac
done
for phase in "${phases[@]}"; do
    printf '== %s\n' "$phase"
    tail -c 1000000 "$logs/$phase"
done >"$out/log.txt"
printf '\n'
cat "$results"
exit "$failed"
