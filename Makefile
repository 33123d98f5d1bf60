# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo-results
CORES := $(shell $(PYTHON) -c "import os; print(os.cpu_count())")
# Unless it is told, accelerate gives a process on a CPU one thread.
RUN := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    --num_cpu_threads_per_process $(CORES)
DATA = digits
FLAGS = --data $(DATA) --output-dir $(OUT) --overwrite
# The same of the run called $1, which goes on where it was stopped.
STARTED = $(OUT)/$1/checkpoint.pt -o -e $(OUT)/$1/report.json
GO = --data $(DATA) --output-dir $(OUT) --tag $1 $$(test -e $(STARTED) && echo --resume || echo --overwrite)

.PHONY: demo cifar10 cifar10-methods architectures fashion-methods ranking sets mnist baselines combinations itgan searches curves continual \
    unrolled ten terms flows test lint clean

$(BIN)/.installed: pyproject.toml requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e . -r requirements-dev.txt
	touch $@

# All but the demo go on where they were stopped, when they are run again.

# The three stages on the embedded digits, the control of stage 2, and one table of what each stage gains.
demo: $(BIN)/.installed
	$(RUN) gen_condense.py $(FLAGS) --tag gan --width 64 --steps 1500
	$(RUN) pool_match.py $(FLAGS) --tag match --weight $(OUT)/gan --steps 120 --pool-members 1 \
	    --pool-epochs 6 --pool-snapshots 3 --eval-epochs 20
	$(RUN) pool_match.py $(FLAGS) --tag control --control-of $(OUT)/match --eval-epochs 20
	$(BIN)/python sample.py --pretrain-weight $(OUT)/match --ipc 10 --seed 0 --output-dir $(OUT)/ipc10
	$(RUN) validate.py $(FLAGS) --tag test --ipc 1 10 --sampling fixed representative fresh --compare random \
	    --epochs 50 --min-steps 100 --pretrain-weight stage1=$(OUT)/gan stage2=$(OUT)/match control=$(OUT)/control
	@echo "There are 360 test images: generators whose students score this much alike cannot be told apart by them."
	@echo "report:        $(OUT)/test/report.html"
	@echo "sample sheet:  $(OUT)/ipc10/sheet.png"

# CIFAR-10, as docs/results/ reports it: hours on a GPU, days on two CPU cores.
cifar10 cifar10-methods ranking searches: OUT = cifar10-results
cifar10 cifar10-methods ranking searches: DATA = cifar10
cifar10 cifar10-methods: POOL = --pool-members 1 --pool-epochs 12 --pool-lr 0.05 --pool-aug crop_flip
cifar10: TAUGHT = --ipc 50 --labels teacher --temperature 4 --lr 0.02 --aug-type crop_flip --epochs 1200 --teacher $(OUT)/teacher/students/*
MATCHED = $$(sed -n 's/.*"pool_folder": "\(.*\)".*/\1/p' $(OUT)/match/config.json)
cifar10: HARD = --ipc 50 --epochs 600
cifar10: STAGES = --pretrain-weight stage1=$(OUT)/gan control=$(OUT)/control stage2=$(OUT)/match
cifar10: WHOLE = --compare whole --ipc 50 --num-eval 1 --keep-students
cifar10: $(BIN)/.installed
	$(RUN) gen_condense.py $(call GO,gan) --steps 20000
	$(RUN) pool_match.py $(call GO,match) --weight $(OUT)/gan --steps 500 $(POOL)
	$(RUN) pool_match.py $(call GO,control) --control-of $(OUT)/match
	$(RUN) validate.py $(call GO,few) --ipc 1 10 --sampling fixed --num-eval 5 $(STAGES) --compare random
	$(RUN) validate.py $(call GO,representative) --ipc 1 10 --sampling representative --num-eval 5 --compare random \
	    --pretrain-weight stage2=$(OUT)/match
	$(RUN) validate.py $(call GO,few-rows) --ipc 1 10 --sampling fixed --num-eval 5 --labels rows --pretrain-weight stage2=$(OUT)/match
	$(RUN) validate.py $(call GO,rep-rows) --ipc 1 10 --sampling representative --num-eval 5 --labels rows --pretrain-weight stage2=$(OUT)/match
	$(RUN) validate.py $(call GO,fresh-few) --ipc 1 10 --sampling fresh --num-eval 5 --labels hard teacher --compare none \
	    --pretrain-weight stage2=$(OUT)/match
	$(RUN) validate.py $(call GO,fresh-hard) $(HARD) --keep-above 0.5 --teacher $(MATCHED) --pretrain-weight stage1=$(OUT)/gan
	$(RUN) validate.py $(call GO,fresh-resnet) $(HARD) --keep-above 0.5 --teacher $(MATCHED) --pretrain-weight stage1=$(OUT)/gan \
	    --eval-model resnet18 --num-eval 1
	$(RUN) validate.py $(call GO,fifty-fresh) --ipc 50 --compare none $(STAGES)
	$(RUN) validate.py $(call GO,fifty) --ipc 50 --sampling fixed representative --compare random --pretrain-weight stage2=$(OUT)/match
	$(RUN) validate.py $(call GO,hard-stage1) $(HARD) --pretrain-weight stage1=$(OUT)/gan
	$(RUN) validate.py $(call GO,hard-random) $(HARD) --sampling fixed --compare random
	$(RUN) validate.py $(call GO,whole) $(WHOLE) --full-epochs 40
	$(RUN) validate.py $(call GO,teacher) $(WHOLE) --full-epochs 24 --aug-type crop_flip --scored-on held_out
	$(RUN) validate.py $(call GO,fresh-teacher) $(TAUGHT) --pretrain-weight stage1=$(OUT)/gan --compare none
	$(RUN) validate.py $(call GO,fixed-teacher) $(TAUGHT) --sampling fixed --compare random

# Pixels and latents of CIFAR-10, ten images of a class, shortened to minutes, and a coreset; the pool and the generator are those of
# `make cifar10`.
cifar10-methods: PIXELS = --ipc 10 --match-batch 64 --eval-interval 1000 --eval-epochs 75
cifar10-methods: PARTS = --ipc 10 --match-batch 32 --pool-batch 64 --pool-images 512 --outer 50 --lr 0.025 --steps 150 --eval-interval 75 \
    --eval-epochs 43
cifar10-methods: $(BIN)/.installed
	$(RUN) pool_match.py $(call GO,herding) --ipc 10 --method herding $(POOL)
	$(RUN) pool_match.py $(call GO,dm) $(PIXELS) --method dm --steps 500
	$(RUN) pool_match.py $(call GO,ncfm) $(PIXELS) --method ncfm --steps 200 --no-pool-initial --pool-snapshots 5 $(POOL)
	$(RUN) pool_match.py $(call GO,random4) --ipc 10 --method random --factor 2
	$(RUN) pool_match.py $(call GO,dream) $(PARTS) --method dream --select-candidates 300
	$(RUN) pool_match.py $(call GO,idc) $(PARTS) --method idc
	$(RUN) pool_match.py $(call GO,dsa) --ipc 10 --method dsa --match-batch 64 --inner 10 --lr 1 --steps 400 --eval-interval 100 \
	    --eval-epochs 150
	$(RUN) pool_match.py $(call GO,inversion) --method inversion --weight $(OUT)/gan --ipc 10
	$(RUN) pool_match.py $(call GO,itgan) --method itgan --weight $(OUT)/inversion --match-batch 64 --steps 400
	$(RUN) pool_match.py $(call GO,dm-one) --ipc 1 --match-batch 64 --eval-interval 1000 --eval-epochs 300 --method dm --steps 500
	$(RUN) pool_match.py $(call GO,bptt) --ipc 1 --method bptt --unroll 40 --window 20 --match-batch 26 --init real --lr 0.01 \
	    --steps 400 --eval-interval 100 --eval-epochs 200
	$(RUN) validate.py $(call GO,one) --ipc 1 --sampling fixed --num-eval 5 --compare random --pretrain-weight bptt=$(OUT)/bptt \
	    dm=$(OUT)/dm-one
	$(RUN) validate.py $(call GO,one-bptt-published) --protocol bptt --ipc 1 --sampling fixed --compare random \
	    --pretrain-weight bptt=$(OUT)/bptt stage1=$(OUT)/gan
	$(RUN) validate.py $(call GO,methods) --ipc 10 --sampling fixed \
	    --pretrain-weight $(foreach name,dm herding inversion itgan,$(name)=$(OUT)/$(name))
	$(RUN) validate.py $(call GO,as-published) --protocol dsa --ipc 10 --sampling fixed --num-eval 2 --compare random \
	    --pretrain-weight dm=$(OUT)/dm dsa=$(OUT)/dsa stage1=$(OUT)/gan
	$(RUN) validate.py $(call GO,methods-factor) --ipc 10 --sampling fixed --epochs 86 \
	    --pretrain-weight $(foreach name,ncfm dream idc,$(name)=$(OUT)/$(name)) "random real images, four in one"=$(OUT)/random4

# Students of seven architectures on sets of ten images of a class, at the learning rate that was best for each on held-out images of
# CIFAR-10: 300 steps each on CIFAR-10, from the runs of `make cifar10` and `make cifar10-methods`; half as many on Fashion-MNIST, from
# those of `make sets-fashion`, and with a teacher's labels. DATA=FOLDER is for architectures-cifar10 alone.
architectures: architectures-cifar10 architectures-fashion
architectures-cifar10: OUT = cifar10-results
architectures-cifar10: LENGTH = --epochs 150
architectures-cifar10: PARTS_LENGTH = --epochs 43
architectures-cifar10: STUDENTS = 3
architectures-fashion: OUT = sets-results/fashion
architectures-fashion: LENGTH = --epochs 75 --min-steps 0
architectures-fashion: PARTS_LENGTH = --epochs 22 --min-steps 0
architectures-fashion: STUDENTS = 2
architectures-fashion: fashion-methods
architectures-%: DATA = $*
architectures-%: FEW = --ipc 10 --num-eval $(STUDENTS) --lr 0.01 --eval-model convnet convnet_bn mlp
architectures-%: DEEP = --ipc 10 --num-eval 1 --lr 0.01 --eval-model vgg11 resnet18_full densenet
architectures-%: ALEX = --ipc 10 --num-eval 1 --eval-model alexnet
LABELLED = --labels hard $1 --teacher $(MATCHED)
ACROSS = $(RUN) validate.py $(call GO,across-$1-few) $(FEW) $3 $(call LABELLED,$2) && \
    $(RUN) validate.py $(call GO,across-$1-alex) $(ALEX) $3 && \
    $(RUN) validate.py $(call GO,across-$1-alex-$2) $(ALEX) --lr 0.02 $3 --labels $2 --teacher $(MATCHED) && \
    $(RUN) validate.py $(call GO,across-$1-deep) $(DEEP) $3 $(call LABELLED,$2)
architectures-%: SAMPLED = $(LENGTH) --compare none --pretrain-weight stage2=$(OUT)/match --sampling
architectures-%: $(BIN)/.installed
	$(call ACROSS,random,rows,$(LENGTH) --sampling fixed --compare random)
	$(call ACROSS,stored,rows,$(LENGTH) --sampling fixed --compare none --pretrain-weight $(foreach name,dm herding,$(name)=$(OUT)/$(name)))
	$(call ACROSS,parts,rows,$(PARTS_LENGTH) --sampling fixed --compare none --pretrain-weight $(foreach name,idc dream,$(name)=$(OUT)/$(name)))
	$(call ACROSS,fixed,rows,$(SAMPLED) fixed)
	$(call ACROSS,representative,rows,$(SAMPLED) representative)
	$(call ACROSS,fresh,teacher,$(SAMPLED) fresh)

# Pixels of Fashion-MNIST, ten images of a class, and a coreset, by the pool of `make sets-fashion`.
fashion-methods: OUT = sets-results/fashion
fashion-methods: DATA = fashion
fashion-methods: POOL = --pool-members 1 --pool-epochs 3 --pool-lr 0.05 --pool-aug crop_flip
fashion-methods: PARTS = --ipc 10 --match-batch 32 --syn-batch 20 --pool-batch 64 --pool-images 256 --outer 50 --lr 0.001 --steps 100 \
    --eval-interval 50 --eval-epochs 43
fashion-methods: $(BIN)/.installed
	$(RUN) pool_match.py $(call GO,herding) --ipc 10 --method herding $(POOL)
	$(RUN) pool_match.py $(call GO,dm) --ipc 10 --method dm --match-batch 64 --steps 500 --eval-interval 1000 --eval-epochs 75
	$(RUN) pool_match.py $(call GO,idc) $(PARTS) --method idc
	$(RUN) pool_match.py $(call GO,dream) $(PARTS) --method dream --select-candidates 300

# The scores of DD-Ranking of five sets of ten images of a class, from the runs of `make cifar10` and `make cifar10-methods`, here and by
# its own package, for which a folder takes the libraries that it wants older (Python 3.12 at most).
ranking: RANKED = dm dsa gan inversion itgan
ranking: LIBRARIES = --no-deps ddranking==0.2.0 "numpy<2" "scipy<1.16" "pandas<3" kornia kornia_rs timm python-dateutil pytz tzdata six
ranking: $(BIN)/.installed
	$(RUN) validate.py $(call GO,ranking) --ranking --ipc 10 --sampling fixed --num-eval 2 --full-epochs 10 \
	    --pretrain-weight $(foreach name,$(RANKED),$(name)=$(OUT)/$(name))
	for name in $(RANKED); do test -e $(OUT)/ranked/$$name/ddranking/config.json || { rm -rf $(OUT)/ranked/$$name; \
	    $(BIN)/python sample.py --pretrain-weight $(OUT)/$$name --ipc 10 --seed 0 --format ddranking \
	    --output-dir $(OUT)/ranked/$$name; } || exit 1; done
	test -e $(OUT)/ddranking/.installed || { $(BIN)/pip install --quiet --upgrade --target $(OUT)/ddranking $(LIBRARIES) && \
	    touch $(OUT)/ddranking/.installed; }
	PYTHONPATH=$(OUT)/ddranking $(BIN)/python benchmarks/ranking.py --run $(OUT)/ranking --test-interval 300 --num-eval 1 \
	    --sets $(foreach name,$(RANKED),$(name)=$(OUT)/ranked/$(name)) --output $(OUT)/ranking-package.json

# The three stages on Fashion-MNIST, SVHN and MNIST with the settings of CIFAR-10, as docs/results/ reports them: on a CPU core with
# AMX, 25 minutes of stage 1 and as many of students. SVHN=DIR names the folder of another SVHN than torchvision's.
SVHN ?= svhn
sets: sets-fashion sets-svhn sets-mnist
sets-%: OUT = sets-results/$*
sets-%: DATA = $*
sets-svhn: DATA = $(SVHN)
sets-fashion sets-mnist: EPOCHS = 3
sets-svhn: EPOCHS = 12
sets-%: STAGES = --pretrain-weight stage1=$(OUT)/gan control=$(OUT)/control stage2=$(OUT)/match
sets-%: $(BIN)/.installed
	$(RUN) gen_condense.py $(call GO,gan) --steps 6000
	$(RUN) pool_match.py $(call GO,match) --weight $(OUT)/gan --steps 300 --pool-members 1 --pool-epochs $(EPOCHS) \
	    --pool-lr 0.05 --pool-aug crop_flip
	$(RUN) pool_match.py $(call GO,control) --control-of $(OUT)/match
	$(RUN) validate.py $(call GO,few) --ipc 1 10 --sampling fixed $(STAGES) --compare random
	$(RUN) validate.py $(call GO,fresh) --ipc 1 10 --sampling fresh --pretrain-weight stage2=$(OUT)/match
	$(RUN) validate.py $(call GO,fifty) --ipc 50 --sampling fixed fresh --num-eval 2 --pretrain-weight stage2=$(OUT)/match \
	    --compare random

# The three stages on MNIST (downloaded unless DATA_DIR has it), as docs/results/ reports them: an hour and a half on two CPU cores.
mnist: OUT = mnist-results
mnist: DATA = mnist
mnist: JUDGE = $(RUN) validate.py $(call GO,$1) --pretrain-weight stage2=$(OUT)/match
mnist: $(BIN)/.installed
	$(RUN) gen_condense.py $(call GO,gan) --width 64 --steps 9000
	$(RUN) pool_match.py $(call GO,match) --weight $(OUT)/gan --calibrate 0 --steps 300 --match-batch 64 --pool-members 2 --pool-epochs 1 \
	    --eval-interval 300
	$(call JUDGE,fresh) --ipc 50 --sampling fresh --epochs 250
	$(call JUDGE,one) --ipc 1 --sampling fixed representative --compare random --num-eval 5
	$(call JUDGE,ten) --ipc 10 --sampling representative --epochs 600

# The pixel methods on MNIST, as docs/results/ reports them: on two CPU cores, an hour of matching and half an hour of students.
baselines curves: OUT = baselines-results
baselines curves: DATA = mnist
baselines: SHORT = --ipc 1 --match-batch 32 --steps 800 --eval-epochs 200
baselines curves: IDC = --ipc 1 --outer 25 --match-batch 32 --pool-images 128 --lr 5e-4 --steps 160 --eval-interval 16 \
    --eval-ipc 1 --eval-epochs 150
baselines: JUDGE = $(RUN) validate.py $(call GO,$1) --sampling fixed --num-eval 5
baselines: $(BIN)/.installed
	$(RUN) pool_match.py $(call GO,dm) --method dm --ipc 10 --match-batch 64 --steps 1000 --eval-interval 500
	$(RUN) pool_match.py $(call GO,dm1) --method dm --ipc 1 --match-batch 64 --steps 1000 --eval-interval 500 --eval-epochs 200
	$(RUN) pool_match.py $(call GO,dc) --method dc $(SHORT) --eval-interval 200
	$(RUN) pool_match.py $(call GO,dsa) --method dsa $(SHORT) --eval-interval 400
	$(RUN) pool_match.py $(call GO,idc) --method idc $(IDC)
	$(RUN) pool_match.py $(call GO,dream) --method idc $(IDC) --select dream --select-candidates 300
	for ipc in 1 10; do $(RUN) pool_match.py $(call GO,herding$$ipc) --method herding --ipc $$ipc \
	    --pool-members 1 --pool-epochs 1 --pool-snapshots 1 || exit 1; done
	$(call JUDGE,one) --ipc 1 --lr 0.003 --aug-type crop_scale_rotate --compare random \
	    --pretrain-weight $(foreach name,dc dsa idc dream,$(name)=$(OUT)/$(name)) dm=$(OUT)/dm1 herding=$(OUT)/herding1
	$(call JUDGE,ten) --ipc 10 --lr 0.01 --batch-size 25 --aug-type color_crop_cutout_scale_rotate --compare random \
	    --pretrain-weight dm=$(OUT)/dm herding=$(OUT)/herding10

# Held-out accuracy against steps: IDC on uniform and on DREAM's batches (MNIST), and DREAM+ by its two switches (digits).
curves: SWITCH = --method dream+ --ipc 1 --factor 1 --match-batch 64 --outer 25 --steps 160 --eval-interval 16 --eval-ipc 1 \
    --eval-epochs 150
curves: PLUS = $(RUN) pool_match.py $(subst --data mnist,--data digits,$(call GO,$1$$seed)) $(SWITCH) --seed $$seed
curves: RUNS = $(foreach seed,0 1 2,$(OUT)/$1$(seed))
curves: DRAW = $(BIN)/python benchmarks/curves.py
curves: $(BIN)/.installed
	for seed in 0 1 2; do \
	    $(RUN) pool_match.py $(call GO,uniform$$seed) --seed $$seed --method idc $(IDC) || exit 1; \
	    $(RUN) pool_match.py $(call GO,dream$$seed) --seed $$seed --method idc $(IDC) --select dream --select-candidates 300 || exit 1; \
	    $(call PLUS,cold) --mean-weight 0 --pool-warmup 0 && $(call PLUS,both) --pool-warmup 0 || exit 1; \
	    $(call PLUS,warm) --mean-weight 0 && $(call PLUS,plus) || exit 1; done
	$(DRAW) --curve uniform $(call RUNS,uniform) --curve DREAM $(call RUNS,dream) --output $(OUT)/dream-curve.json
	$(DRAW) --curve "gradients on cold networks" $(call RUNS,cold) --curve "both on cold networks" $(call RUNS,both) \
	    --curve "gradients on warm networks" $(call RUNS,warm) --curve "both on warm networks" $(call RUNS,plus) \
	    --output $(OUT)/dreamplus-curve.json

# Memories of digits, Fashion-MNIST and CIFAR-100 in class-incremental learning, and methods that train networks on the images of MNIST
# that they learn, as docs/results/ reports them: about an hour each on a thread, Fashion-MNIST three and a half, CIFAR-100 two.
# CIFAR100=DIR names a folder with its pictures. Run again, they go on.
CIFAR100 ?= cifar100
continual unrolled: OUT = $@-results
continual: SMALL = --match-batch 64 --eval-interval 1000 --eval-epochs 1 --pool convnet:width=64
continual: $(BIN)/.installed
	$(RUN) continual.py $(call GO,all) --steps 5 --orders 5 --ipc 10 --replay-ipc 50 --num-eval 1 \
	    --labels hard previous --epochs 100 --memory random="pool_match.py --method random" \
	    herding="pool_match.py --method herding --pool-members 1 --pool-epochs 10 --pool-snapshots 1" \
	    dsa="pool_match.py --method dsa --match-batch 64 --pool-batch 64 --steps 100 --eval-interval 1000 --eval-epochs 1" \
	    dm="pool_match.py --method dm --match-batch 64 --steps 300 --eval-interval 1000 --eval-epochs 1" \
	    idc="pool_match.py --method idc --factor 1 --match-batch 64 --pool-images 64 --outer 50 --steps 100 --eval-interval 1000 \
	    --eval-epochs 1" replay="gen_condense.py --width 32 --steps 600"
	$(RUN) continual.py $(subst digits,fashion,$(call GO,fashion)) --steps 5 --orders 5 --ipc 10 --replay-ipc 50 --num-eval 1 \
	    --eval-model convnet:width=64 --epochs 75 --min-steps 150 --memory random="pool_match.py --method random" \
	    herding="pool_match.py --method herding --pool convnet:width=64 --pool-members 1 --pool-epochs 1 --pool-snapshots 1" \
	    dsa="pool_match.py --method dsa --pool-batch 64 --inner 10 --steps 50 $(SMALL)" \
	    dm="pool_match.py --method dm --steps 300 $(SMALL)" \
	    idc="pool_match.py --method idc --factor 1 --pool-images 64 --outer 50 --steps 60 --lr 0.01 $(SMALL)" \
	    replay="gen_condense.py --width 32 --batch-size 32 --ema 0.99 --steps 800"
	$(RUN) continual.py $(subst digits,$(CIFAR100),$(call GO,cifar100)) --steps 5 --orders 2 --ipc 10 --replay-ipc 50 --num-eval 1 \
	    --eval-model convnet:width=64 --epochs 75 --min-steps 150 --memory random="pool_match.py --method random" \
	    herding="pool_match.py --method herding --pool convnet:width=64 --pool-members 1 --pool-epochs 5 --pool-snapshots 1" \
	    dm="pool_match.py --method dm --steps 200 $(SMALL)" replay="gen_condense.py --width 64 --ema 0.99 --steps 1000"
unrolled: DATA = mnist
unrolled: JUDGED = --ipc 1 --eval-epochs 200
unrolled: STUDENTS = --ipc 1 --sampling fixed --num-eval 5
unrolled: $(BIN)/.installed
	$(RUN) pool_match.py $(call GO,bptt) $(JUDGED) --method bptt --unroll 40 --window 20 --match-batch 26 --init real \
	    --lr 0.01 --steps 600 --eval-interval 100
	$(RUN) pool_match.py $(call GO,mtt) $(JUDGED) --method mtt --pool-members 5 --pool-epochs 5 --max-start 3 --unroll 30 \
	    --steps 200 --eval-interval 50
	$(RUN) pool_match.py $(call GO,datm) $(JUDGED) --method datm --pool-members 5 --pool-epochs 5 --max-start 3 --unroll 30 \
	    --first-max-start 0 --lr 300 --label-lr 5 --skip-above 1.1 --steps 125 --eval-interval 25
	$(RUN) validate.py $(call GO,hard) $(STUDENTS) --no-own --lr 0.003 --aug-type crop_scale_rotate \
	    --pretrain-weight $(foreach name,bptt mtt datm,$(name)=$(OUT)/$(name))
	$(RUN) validate.py $(call GO,soft) $(STUDENTS) --lr 0.003 --aug-type crop_scale_rotate --pretrain-weight datm=$(OUT)/datm
	$(RUN) validate.py $(call GO,published) $(STUDENTS) --num-eval 3 --protocol dsa \
	    --pretrain-weight $(foreach name,mtt datm,$(name)=$(OUT)/$(name))

# Ten images of a class of MNIST by methods that match gradients or train networks on the images, with ConvNets of half the width; `dd`,
# of which one image of a class too, with LeNets, as its authors have it. On a thread four hours: experts 40 minutes, students two hours.
ten: OUT = ten-results
ten: DATA = mnist
ten: HALF = --ipc 10 --pool convnet:width=64
ten: TRAINED = $(HALF) --pool-members 5 --pool-epochs 4 --max-start 2 --unroll 30 --unroll-batch 20 --eval-interval 40 --eval-epochs 75
ten: GRADIENTS = $(HALF) --match-batch 32 --inner 2 --lr 1 --steps 300 --eval-interval 100 --eval-epochs 75
ten: PARTS = $(HALF) --outer 25 --match-batch 32 --syn-batch 20 --pool-images 128 --lr 0.001 --steps 200
ten: LENET = --method dd --pool lenet --eval-interval 10000 --eval-epochs 1
ten: JUDGE = $(RUN) validate.py $(call GO,$1) --sampling fixed --compare none
ten: TEN = --ipc 10 --num-eval 3 --lr 0.01 --batch-size 25 --aug-type color_crop_cutout_scale_rotate
ten: REPLAY = --protocol replay --num-eval 5 --eval-model lenet convnet
ten: $(BIN)/.installed
	$(RUN) pool_match.py $(call GO,mtt) $(TRAINED) --method mtt --steps 160
	$(RUN) pool_match.py $(call GO,datm) $(TRAINED) --method datm --first-max-start 0 --lr 300 --label-lr 5 --skip-above 1.1 --steps 120
	$(RUN) pool_match.py $(call GO,bptt) $(HALF) --method bptt --unroll 40 --window 20 --unroll-batch 20 --match-batch 26 --init real \
	    --lr 0.01 --steps 240 --eval-interval 60 --eval-epochs 75
	$(RUN) pool_match.py $(call GO,dc) $(GRADIENTS) --method dc
	$(RUN) pool_match.py $(call GO,dsa) $(GRADIENTS) --method dsa
	$(RUN) pool_match.py $(call GO,idc) $(PARTS) --method idc --eval-interval 1000 --eval-epochs 1
	$(RUN) pool_match.py $(call GO,dream) $(PARTS) --method dream --pool-batch 64 --select-candidates 300 --eval-interval 100 --eval-epochs 20
	$(RUN) pool_match.py $(call GO,dd1) $(LENET) --ipc 1 --steps 2000
	$(RUN) pool_match.py $(call GO,dd10) $(LENET) --ipc 10 --steps 600
	$(call JUDGE,one) --ipc 1 --num-eval 5 --no-own --lr 0.003 --aug-type crop_scale_rotate --pretrain-weight dd=$(OUT)/dd1
	$(call JUDGE,one-replay) $(REPLAY) --ipc 1 --pretrain-weight dd=$(OUT)/dd1
	$(call JUDGE,replay) $(REPLAY) --ipc 10 --pretrain-weight dd=$(OUT)/dd10
	$(call JUDGE,classic) $(TEN) --pretrain-weight $(foreach name,dsa dc,$(name)=$(OUT)/$(name))
	$(call JUDGE,hard) $(TEN) --no-own --pretrain-weight $(foreach name,mtt datm bptt,$(name)=$(OUT)/$(name)) dd=$(OUT)/dd10
	$(call JUDGE,soft) $(TEN) --pretrain-weight datm=$(OUT)/datm
	$(call JUDGE,parts) $(TEN) --epochs 75 --pretrain-weight $(foreach name,idc dream,$(name)=$(OUT)/$(name))

# What pixels of MNIST are matched by: four distances of embeddings at four learning rates, of which held-out images choose. Then the
# parts of NCFM, on digits: without each of three, and without any.
terms: OUT = terms-results
terms: DATA = mnist
terms: SMALL = $(subst --data mnist,--data digits,$(call GO,$1))
terms: PARTS = --method ncfm --ipc 10 --factor 1 --match-batch 64 --steps 300 --pool-members 4 --pool-epochs 10 --eval-interval 300 \
    --eval-epochs 150
terms: $(BIN)/.installed
	for match in mean moments energy cf; do for lr in 0.003 0.01 0.03 0.1; do \
	    $(RUN) pool_match.py $(call GO,$$match-$$lr) --ipc 10 --method dm --match $$match --optimizer adam --lr $$lr --match-batch 64 \
	    --steps 200 --eval-interval 200 || exit 1; done; done
	$(RUN) validate.py $(call GO,test) --ipc 10 --sampling fixed --num-eval 5 --lr 0.01 --batch-size 25 \
	    --aug-type color_crop_cutout_scale_rotate --pretrain-weight $(foreach name,mean moments energy cf,$(name)=$(OUT)/$(name)-0.03)
	for lr in 0.003 0.01 0.03; do for row in "whole" "unmixed --no-pool-mix" "uncalibrated --calibrate 0" "mean --match mean" \
	    "none --match mean --no-pool-mix --calibrate 0"; do set -- $$row; tag=ncfm-$$1-$$lr; shift; \
	    $(RUN) pool_match.py $(call SMALL,$$tag) $(PARTS) --lr $$lr $$@ || exit 1; done; done
	$(RUN) validate.py $(call SMALL,ncfm-parts) --ipc 10 --sampling fixed --num-eval 8 --epochs 150 --compare random \
	    --pretrain-weight $(foreach name,whole unmixed uncalibrated mean none,$(name)=$(OUT)/ncfm-$(name)-0.01)

# A flow and a shortcut of digits: in how many steps they draw, by held-out images, and stage 2 through one step and four, as
# docs/results/ reports them: two hours on a thread.
flows: OUT = flow-results
flows: REFINE = $(BIN)/python benchmarks/refine.py --data digits --ipc 50 --sampling fixed --students 8
flows: MATCH = $(RUN) pool_match.py $(call GO,$1) --eval-interval 1000 --eval-epochs 20
flows: POOL = --steps 80 --pool-members 1 --pool-epochs 6 --pool-snapshots 3
flows: JUDGE = $(RUN) validate.py $(call GO,$1) --ipc 1 10 --sampling fixed --num-eval 5 --epochs 50 --min-steps 100
flows: $(BIN)/.installed
	for recipe in flow shortcut; do \
	    $(RUN) gen_condense.py $(call GO,$$recipe) --recipe $$recipe --width 48 --steps 2000 || exit 1; \
	    $(REFINE) --pretrain-weight $(OUT)/$$recipe --output $(OUT)/$$recipe-steps.json || exit 1; done
	for steps in 1 4; do \
	    $(call MATCH,match-$$steps) --weight $(OUT)/flow --sample-steps $$steps $(POOL) || exit 1; \
	    $(call MATCH,control-$$steps) --control-of $(OUT)/match-$$steps || exit 1; done
	$(call MATCH,match-short) --weight $(OUT)/shortcut --sample-steps 1 $(POOL)
	$(call MATCH,control-short) --control-of $(OUT)/match-short
	$(call JUDGE,one-step) --sample-steps 1 --pretrain-weight flow=$(OUT)/flow stage2=$(OUT)/match-1 control=$(OUT)/control-1 \
	    shortcut=$(OUT)/shortcut "stage2 of shortcut=$(OUT)/match-short" "control of shortcut=$(OUT)/control-short"
	$(call JUDGE,four-steps) --sample-steps 4 --pretrain-weight flow=$(OUT)/flow stage2=$(OUT)/match-4 control=$(OUT)/control-4

# The generators of digits that the next two targets start from: wider and trained for longer than those of the demo.
digits-results/.made: override OUT = digits-results
digits-results/.made: $(BIN)/.installed
	$(RUN) gen_condense.py $(call GO,gan) --steps 1800
	$(RUN) pool_match.py $(call GO,match) --weight $(OUT)/gan --calibrate 0 --steps 200 --pool-members 2
	touch $@

# Two combinations of the engine's choices that no paper has, beside the nearest published ones.
combinations: OUT = combinations-results
combinations: PIXELS = --method dm --ipc 10 --match-batch 64 --steps 500 --eval-interval 500 --eval-epochs 200 --lr 10
combinations: JUDGE = $(RUN) validate.py $(call GO,$1) --ipc 10 --epochs 150 --num-eval 5
combinations: GANS = --pretrain-weight gan=digits-results/gan dim=digits-results/match grad-gan=$(OUT)/grad-gan
combinations: $(BIN)/.installed | digits-results/.made
	$(RUN) pool_match.py $(call GO,dm) $(PIXELS)
	$(RUN) pool_match.py $(call GO,energy-dream) $(PIXELS) --match energy --select dream
	$(RUN) pool_match.py $(call GO,grad-gan) --weight digits-results/gan --match grad --metric cos --match-weight 0.01 \
	    --pool-training real --outer 50 --steps 200
	$(call JUDGE,fixed) --sampling fixed --compare random $(GANS) dm=$(OUT)/dm energy-dream=$(OUT)/energy-dream
	$(call JUDGE,fresh) $(GANS)

# Latents of the generators of digits and of the one that `make mnist` leaves: their inversion, IT-GAN, and as many real images.
itgan: latents-digits latents-ten latents-mnist
latents-%: OUT = itgan-results
latents-mnist: DATA = mnist
latents-digits latents-ten: GAN = digits-results/gan
latents-digits latents-ten: | digits-results/.made
latents-digits latents-mnist: STEPS = 150
latents-digits: IPC = 127
latents-digits: CONVNET = --epochs 15 --num-eval 5
latents-digits: RESNET = --epochs 15
latents-ten: IPC = 10
latents-ten: STEPS = 500
latents-ten: CONVNET = --epochs 150 --num-eval 5
latents-ten: RESNET = --epochs 150
latents-mnist: GAN = mnist-results/gan
latents-mnist: IPC = 100
latents-mnist: CHUNKS = --syn-batch 50 --chunk-steps 120
latents-mnist: PART = --syn-batch 32
latents-mnist: CONVNET = --epochs 15
latents-mnist: RESNET = --epochs 9 --min-steps 150
latents-%: LEARN = $(RUN) pool_match.py $(call GO,$1) --eval-interval 1000
latents-%: JUDGE = $(RUN) validate.py $(call GO,$*-$1) --ipc $(IPC) --sampling fixed --compare random \
    --pretrain-weight gan=$(GAN) gan-inversion=$(OUT)/$*-inversion itgan=$(OUT)/$*-itgan
latents-%: $(BIN)/.installed
	$(call LEARN,$*-inversion) --method inversion --weight $(GAN) --ipc $(IPC) $(CHUNKS)
	for row in itgan "dream --select dream --select-candidates 300" "free --paired-weight 0"; do set -- $$row; tag=$*-$$1; shift; \
	    $(call LEARN,$$tag) --method itgan --weight $(OUT)/$*-inversion --match-batch 64 --steps $(STEPS) $(PART) $$@ || exit 1; done
	$(call JUDGE,convnet) itgan-dream=$(OUT)/$*-dream itgan-free=$(OUT)/$*-free $(CONVNET)
	$(call JUDGE,resnet18) --eval-model resnet18 $(RESNET)

# The searches of docs/results/, on held-out images alone, from the runs of `make demo` and `make cifar10`. Run again, they go on.
searches: SMALL = --pool '{"pool_members": 1, "pool_epochs": 6, "pool_snapshots": 3}' --weight demo-results/gan --seconds 40 --repeats 2
searches: ONE = --pool '{"pool_members": 1, "pool_epochs": 1, "pool_snapshots": 3}' --weight search-results/gan
searches: POOL = '{"pool_members": 1, "pool_epochs": 12, "pool_lr": 0.05, "pool_aug": "crop_flip"}'
searches: OBJECTIVES = $(BIN)/python benchmarks/objectives.py
searches: JUDGE = $(RUN) validate.py --scored-on held_out --num-eval $(if $1,$1,1)
searches: RATE = --compare random --ipc 10 --sampling fixed --epochs 150
searches: GAN = --ipc 50 --pretrain-weight stage1=$(OUT)/gan
searches: $(BIN)/.installed
	mkdir -p search-results
	$(BIN)/python benchmarks/recipes.py --data digits --seconds 300 --variants default width-64 flow-48 --output search-results/flows.json \
	    --scores $(foreach ipc,1 10,$(ipc):fixed:5 $(ipc):representative:5 $(ipc):fresh:5) 50:fixed:5 50:fresh:5
	$(OBJECTIVES) $(SMALL) --variants control calibrated calibrated-1 default --scores 1:fixed:8 10:fixed:8 10:fresh:5 \
	    --output search-results/calibrated.json
	$(OBJECTIVES) $(SMALL) --variants control uncalibrated logit trajectory trajectory-10 outcome outcome-10 --scores 1:fixed:8 10:fixed:8 \
	    --output search-results/trained.json
	$(OBJECTIVES) $(SMALL) --variants control uncalibrated cf mixed calibrated calibrated-mixed calibrated-3-cf default \
	    --scores 1:fixed:8 10:fixed:8 --output search-results/ncfm-parts.json
	$(RUN) gen_condense.py --data mnist --output-dir search-results --tag gan --width 64 --steps 3000 \
	    $$(test -e search-results/gan/checkpoint.pt && echo --resume || echo --overwrite)
	$(OBJECTIVES) $(ONE) --seconds 150 --compile on --variants control default --scores 1:fixed:8 10:fixed:8 10:fresh:3 \
	    --output search-results/mnist-calibrated.json
	$(OBJECTIVES) --pool $(POOL) --weight $(OUT)/gan --seconds 800 --compile on --eval-epochs 75 --scores 10:fixed:8 50:fresh:3 \
	    --variants control calibrated-1 default calibrated-3-kept calibration calibrated-10 --output search-results/stage2.json
	$(BIN)/python benchmarks/recipes.py --data $(DATA) --image-size 16 --seconds 420 --compile on --eval-epochs 50 \
	    --variants default width-192 cosine-decay relativistic batch-128 flips r1-0.1 --scores 50:fixed:4 10:fresh:3 \
	    --output search-results/recipes.json
	$(JUDGE) $(GAN) $(call GO,kept-all)
	$(JUDGE) $(GAN) --teacher $(MATCHED) --keep-above 0.5 $(call GO,kept-half)
	for row in "color_crop_cutout 2 0.05" "color_crop_cutout 4 0.05" "color_crop_cutout 8 0.05" "crop_flip 4 0.05" "crop_flip 4 0.1" \
	    "crop_flip 4 0.02"; do set -- $$row; $(JUDGE) $(GAN) --teacher $(MATCHED) --labels teacher --compare none --epochs 75 --min-steps 0 --aug-type $$1 \
	    --temperature $$2 --lr $$3 $(call GO,taught-$$1-$$2-$$3) || exit 1; done
	for lr in 0.05 0.02 0.01 0.005 0.002; do $(call JUDGE,5) --compare random --ipc 10 --sampling fixed --eval-model mlp --lr $$lr \
	    $(call GO,mlp-$$lr) || exit 1; done
	for lr in 0.05 0.02 0.01; do $(call JUDGE,3) $(RATE) --eval-model convnet convnet_bn mlp --lr $$lr $(call GO,rates-few-$$lr) && \
	    $(call JUDGE,2) $(RATE) --eval-model alexnet --lr $$lr $(call GO,rates-alex-$$lr) || exit 1; done
	for lr in 0.05 0.01; do $(call JUDGE,3) $(RATE) --eval-model resnet18 --lr $$lr $(call GO,rates-resnet-$$lr) || exit 1; done
	for lr in 0.05 0.02 0.01 0.005; do $(call JUDGE,2) $(RATE) --eval-model vgg11 --lr $$lr $(call GO,rates-vgg-$$lr) || exit 1; done
	for lr in 0.05 0.01; do $(call JUDGE) $(RATE) --eval-model resnet18_full densenet --lr $$lr $(call GO,rates-deep-$$lr) || exit 1; done

lint: $(BIN)/.installed
	$(BIN)/ruff check .

# The tests are small: several at once, on a thread each, are sooner done than one after the other on all threads.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

# All but cifar10-results, which take days.
clean:
	rm -rf .venv demo-results mnist-results baselines-results combinations-results digits-results itgan-results search-results sets-results \
	    continual-results unrolled-results ten-results terms-results flow-results
