#!/usr/bin/env bash
# Asks a running `sidereal serve` by curl: examples/curl.sh [URL]. SIDEREAL_KEY, if set, is sent as the key.
set -euo pipefail
url="${1:-http://127.0.0.1:8000}"
send=(curl --silent --show-error --no-buffer)
if [ -n "${SIDEREAL_KEY:-}" ]; then
    send+=(-H "Authorization: Bearer $SIDEREAL_KEY")
fi
ask=("${send[@]}" --fail-with-body -H 'Content-Type: application/json')
show() { printf '\n== %s\n' "$1"; }

show "what is served"
"${ask[@]}" "$url/v1/models"
"${ask[@]}" "$url/v1/catalog"

show "a ranked list"
"${ask[@]}" "$url/v1/items" -d '{
  "messages": [{"role": "user", "content": "Find an item.\nQuery: horror films from the 1980s\nTarget item type: film\nOutput: items"}],
  "n": 3, "item_types": ["film"], "return_attributes": ["year"]}'

show "text with items in it, as events"
"${ask[@]}" "$url/v1/items" -H 'Accept: text/event-stream' -d '{
  "messages": [{"role": "user", "content": "Recommend an item and say why.\nQuery: jazz albums\nTarget item type: album\nOutput: mixed"}],
  "output": "mixed", "max_tokens": 24, "temperature": 0}'

show "OpenAI's chat, streamed"
"${ask[@]}" "$url/v1/chat/completions" -d '{
  "messages": [{"role": "user", "content": "Hello"}],
  "max_tokens": 8, "stream": true, "stream_options": {"include_usage": true}}'

show "a choice"
"${ask[@]}" "$url/v1/chat/completions" -d '{
  "messages": [{"role": "user", "content": "Salt or sweet?"}], "choice": ["salt", "sweet"]}'

show "JSON lines in, JSON lines out"
printf '%s\n' '{"id": "a", "prompt": "moby dick", "output": "items", "n": 1}' '{"id": "b", "prompt": "moby dick", "output": "text", "max_tokens": 4}' |
    "${send[@]}" --fail-with-body "$url/v1/batch" -H 'Content-Type: application/jsonl' --data-binary @-

show "tokens"
"${ask[@]}" "$url/tokenize" -d '{"prompt": "the white whale"}'

show "a mistake"
"${send[@]}" -H 'Content-Type: application/json' "$url/v1/items" -d '{"prompt": "moby dick", "beam_width": 0}'

show "how it is doing"
"${ask[@]}" "$url/readyz"
"${ask[@]}" "$url/metrics" | grep -E '^sidereal:(num_requests|expected_queue|items_total)'
