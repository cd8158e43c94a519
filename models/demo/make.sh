#!/usr/bin/env bash
# Makes the demo model anew: trains the BPE tokenizer and the network on five of Jane Austen's novels, from the repository's
# root, into the folder named by the first argument. Persuasion is held out. About 25 minutes on two cores.
set -euo pipefail
text=data/austen
exec cargo run --release -- pretrain --model models/demo/config.json --out "$1" --dtype f16 \
  --train $text/emma.txt $text/mansfield_park.txt $text/northanger_abbey.txt $text/pride_and_prejudice.txt \
  $text/sense_and_sensibility.txt --eval $text/persuasion.txt \
  --steps 4000 --batch 8 --seq-len 256 --lr 1.5e-3 --weight-decay 0.1 --seed 0
