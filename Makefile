# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-results
RUN := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
FLAGS := --data digits --output-dir $(OUT) --overwrite

.PHONY: demo mnist test lint clean

$(BIN)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@

# The three stages on the embedded digits, the control of stage 2, and one table of all of them.
demo: $(BIN)/.installed
	$(RUN) gen_condense.py $(FLAGS) --tag gan --steps 1800
	$(RUN) pool_match.py $(FLAGS) --tag match --weight $(OUT)/gan --steps 200 --pool-members 2
	$(RUN) pool_match.py $(FLAGS) --tag control --weight $(OUT)/gan --control-of $(OUT)/match
	$(RUN) validate.py $(FLAGS) --tag test --ipc 50 --sampling fresh --epochs 90 \
	    --pretrain-weight stage1=$(OUT)/gan stage2=$(OUT)/match control=$(OUT)/control
	$(BIN)/python sample.py --pretrain-weight $(OUT)/match --ipc 10 --seed 0 --output-dir $(OUT)/ipc10

# The same on MNIST (downloaded unless DATA_DIR has it), as the README reports it: an hour and a half on two CPU cores.
mnist: OUT = mnist-results
mnist: FLAGS = --data mnist --output-dir $(OUT) --overwrite
mnist: JUDGE = $(RUN) validate.py $(FLAGS) --pretrain-weight stage2=$(OUT)/match
mnist: $(BIN)/.installed
	$(RUN) gen_condense.py $(FLAGS) --tag gan --width 64 --steps 9000
	$(RUN) pool_match.py $(FLAGS) --tag match --weight $(OUT)/gan --steps 300 --match-batch 64 --pool-members 2 --pool-epochs 1 \
	    --eval-interval 300
	$(JUDGE) --tag fresh --ipc 50 --sampling fresh --epochs 250
	$(JUDGE) --tag one --ipc 1 --sampling fixed representative --compare random --num-eval 5
	$(JUDGE) --tag ten --ipc 10 --sampling representative --epochs 600

lint: $(BIN)/.installed
	$(BIN)/ruff check .

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf .venv demo-results mnist-results results
