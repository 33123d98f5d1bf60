"""What keeps the best of a run, by the score of a student on held-out images."""

from dataclasses import dataclass, replace

from gendistil.common.cli import COUNT
from gendistil.common.flags import option
from gendistil.evaluation.students import PROTOCOLS, evaluate
from pools import CLASSIFIERS

_GROUP = "length and reports"


@dataclass(frozen=True)
class Judging:
    """How often, and by what student, a run is scored while it learns."""

    eval_interval: int = option("steps between held-out scores", 250, type=COUNT, group=_GROUP)
    eval_model: str = option("student that is scored", "convnet", choices=CLASSIFIERS, group=_GROUP)
    eval_ipc: int = option("fresh images of each class in an epoch of that student", 10, type=COUNT, group=_GROUP)
    eval_epochs: int = option("epochs of that student", 60, type=COUNT, group=_GROUP)


class Judge:
    """Scores a source on the held-out images and keeps it in the run's folder: the best so far, or the latest.

    Args: run, a `Run`; engine, the `Engine` that runs the students; dataset; judging, a `Judging`; seed, of the student;
    keep, "best" or "last"; summary, a dict in which the score (per cent) and the step of what is kept stand, and go on from an
    earlier part of the run.
    """

    def __init__(self, run, engine, dataset, judging, seed, keep, summary):
        self.run, self.engine, self.dataset, self.judging = run, engine, dataset, judging
        self.seed, self.keep, self.summary = seed, keep, summary
        self.protocol = replace(PROTOCOLS["default"], epochs=judging.eval_epochs, min_steps=0)

    def score(self, learner, step):
        """Score `learner.source` after `step` steps; every process calls it, the main one works."""
        if self.run.is_main:
            source, ipc = learner.source, self.judging.eval_ipc
            ipc = ipc if source.max_ipc is None else min(ipc, source.max_ipc)
            score = evaluate(source, self.dataset, self.judging.eval_model, ipc, "fresh", num_eval=1, seed=self.seed,
                             protocol=self.protocol, scored_on="held_out", engine=self.engine).mean
            self.run.log({"held_out_accuracy": score}, step)
            if self.keep == "last" or score >= self.summary["held_out_accuracy"]:
                self.summary.update(held_out_accuracy=score, best_step=step)
                self.run.save_model(source, learner.folder)
            self.run.images(learner.folder, *learner.grid(), step)
        self.run.accelerator.wait_for_everyone()
