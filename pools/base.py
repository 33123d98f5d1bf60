"""What matching asks of a pool of classifiers."""


class Pool:
    """Networks in whose eyes real and synthetic images are compared: frozen, in eval mode, on the data set's device.

    `dir` is the folder that they are kept in.
    """

    dir = None

    def prepare(self, step, learner):
        """What happens before step `step` of matching: nothing."""

    def draw(self, generator):
        """The network of a step, by the next draws of `generator`."""
        raise NotImplementedError

    def last(self, generator):
        """A network for a choice of images before any step: any."""
        return self.draw(generator)

    def finished(self):
        """The indices of those that have learned to the end: none."""
        return []

    def embed(self, network, rows, whole=False):
        """Embeddings of the training images `rows` (int64 [n]) as `network`, drawn here, sees them: float32 [n, D].

        With `whole` last bits do not depend on which images are asked for together.
        """
        raise NotImplementedError

    def state_dict(self):
        """What resuming needs: nothing."""
        return {}

    def load_state_dict(self, state):
        """Go on from there."""
