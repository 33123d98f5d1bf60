"""What keeps the best of a run, by the score of a student on held-out images, and what ends a run by it."""

import math
from dataclasses import dataclass, replace

from gendistil.common.cli import COUNT, say
from gendistil.common.errors import Diverged
from gendistil.common.flags import LENGTH_GROUP, option
from gendistil.common.loop import any_process
from gendistil.common.rng import seed_of
from gendistil.evaluation.protocols import protocol_for
from gendistil.evaluation.students import evaluate
from pools import one_classifier, usual_classifier


@dataclass(frozen=True)
class Judging:
    """How often, and by what student, a run is scored while it learns."""

    eval_interval: int = option("steps between held-out scores, and of stage 2 between checkpoints", 250, type=COUNT,
                                group=LENGTH_GROUP)
    eval_model: str | None = option("student that is scored, named, and by default, as of validate.py --eval-model", None,
                                    type=one_classifier, metavar="NAME", group=LENGTH_GROUP)
    eval_ipc: int | None = option("fresh images of each class in an epoch of that student (default: 10, or all stored pixels)",
                                  None, type=COUNT, group=LENGTH_GROUP)
    eval_epochs: int = option("epochs of that student", 60, type=COUNT, group=LENGTH_GROUP)

    def student(self, spec):
        """The kind of that student for images of a `Spec`."""
        return self.eval_model or usual_classifier(spec.size)


@dataclass(frozen=True)
class Stopping(Judging):
    """The same for a run that ends by its scores."""

    auto_stop: bool = option("keep the generator with the best held-out score, and end when scores no longer rise", False,
                             group=LENGTH_GROUP)
    patience: int = option("scores in a row without a rise above the best, after which --auto-stop ends the run", 3, type=COUNT,
                           group=LENGTH_GROUP)


class Judge:
    """Scores a source on the held-out images and keeps it in the run's folder: the best so far, or the latest.

    Args: run, a `Run`; engine, the `Engine` that runs the students; dataset; judging, a `Judging`; seed, of the run, from which
    the student has one of its own: what is kept must not be the best for a student of the evaluation; keep, "best" or "last";
    summary, a dict in which the score (per cent) and the step of what is kept stand, and go on from an earlier part of the run.
    """

    def __init__(self, run, engine, dataset, judging, seed, keep, summary):
        self.run, self.engine, self.dataset, self.judging = run, engine, dataset, judging
        self.seed, self.keep, self.summary = seed_of(seed, "judge"), keep, summary
        self.student = judging.student(dataset.spec)
        protocol = protocol_for("default", dataset.spec.name, self.student)
        self.protocol = replace(protocol, epochs=judging.eval_epochs, min_steps=0)

    def score(self, learner, step):
        """Score `learner.source` after `step` steps; every process calls it, the main one works."""
        if self.run.is_main:
            source, stored = learner.source, learner.source.max_ipc or math.inf
            if (self.judging.eval_ipc or 0) > stored:
                say(f"--eval-ipc {self.judging.eval_ipc}: {stored} images of a class are stored, so the student sees those")
                self.judging = replace(self.judging, eval_ipc=stored)
            ipc = min(self.judging.eval_ipc or learner.usual_ipc, stored)
            try:
                score = evaluate(source, self.dataset, self.student, ipc, "fresh", num_eval=1, seed=self.seed,
                                 protocol=self.protocol, scored_on="held_out", engine=self.engine).mean
            except Diverged:  # at the step size that a source has learned, say, which may yet learn another
                say(f"step {step}: the loss of the student that scores it was not finite, so its score is 0")
                score = 0.0
            self.run.log({"held_out_accuracy": score}, step)
            if step == 0:
                self.summary["held_out_accuracy_before"] = score
            self.run.images(learner.folder, *learner.grid(), step)
            if self.keep == "last" or score >= self.summary["held_out_accuracy"]:
                self.summary.update(held_out_accuracy=score, best_step=step)
                self.run.save_model(source, learner.folder)  # last: the checkpoint that knows of it follows at once
        self.run.accelerator.wait_for_everyone()

    def gain(self, matched):
        """What a run of a generator has gained, in words.

        Args: matched, None for a run that has matched; for one that has not, the summary of the run whose control it is, empty
        where it is none.
        """
        before, after = self.summary.get("held_out_accuracy_before"), self.summary["held_out_accuracy"]
        words = "" if before is None else f"{before:.1f} % of the held-out images before, "
        words += f"{after:.1f} % with what is kept" if self.summary["best_step"] else "no step scored more, so that is kept"
        if matched is None:
            return f"{words}. What matching gained, its control alone can tell: --control-of {self.run.dir}"
        if "held_out_accuracy" not in matched:
            return words
        gained = round(matched["held_out_accuracy"] - after, 1)
        verdict = f"matching is {gained:.1f} points above" if gained > 0 else "matching has gained nothing beside"
        return f"{words}. By this one student each {verdict} its control; validate.py tells by several"


class StoppingJudge(Judge):
    """A `Judge` that keeps the best and says when a run has stopped gaining; `judging` is a `Stopping`.

    The student is the same at every score, so equal generators score alike, and every rise counts. The summary, which is kept
    in the checkpoint, counts the scores since the last one.
    """

    def __init__(self, run, engine, dataset, judging, seed, summary=None):
        summary = summary or {"held_out_accuracy": 0.0, "best_step": 0, "scores_without_rise": 0}
        super().__init__(run, engine, dataset, judging, seed, "best", summary)

    def score(self, learner, step):
        best = self.summary["held_out_accuracy"]
        super().score(learner, step)
        if self.run.is_main:  # the others know no score
            rose = self.summary["held_out_accuracy"] > best
            self.summary["scores_without_rise"] = 0 if rose else self.summary["scores_without_rise"] + 1

    def over(self):
        """Whether the run ends here; every process calls it, and all get the same answer."""
        return any_process(self.run.accelerator, self.summary["scores_without_rise"] >= self.judging.patience)

    def verdict(self, step, over):
        """One line: at which step the run ended, why, and what is kept."""
        best, patience = self.summary["held_out_accuracy"], self.judging.patience
        why = f"no rise above {best:.2f} % in {patience} held-out scores" if over else "its length"
        return f"ended at step {step} ({why}); the generator of step {self.summary['best_step']} is kept"
