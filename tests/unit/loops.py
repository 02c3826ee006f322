"""What the tests of the training loops share: rewards that are easy to learn, and what a run is compared by."""


def length(prompts, responses):
    return [float(len(response)) for response in responses]


def brevity(prompts, responses):
    return [-len(response) / 10 for response in responses]


def says_token(prompts, responses):
    return [float("token" in response) for response in responses]


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def plain(records):
    """Records without what may be NaN, which equals nothing."""
    return [record._replace(gold=0.0, samples=()) for record in records]
