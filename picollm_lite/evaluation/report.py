"""The numbers of a report card: checkpoints on one suite, the reference, the reward model's audit, the environment."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import Dataset

from picollm_lite import __version__
from picollm_lite.chat import MAX_NEW_TOKENS
from picollm_lite.evaluation.alignment_tax import held_out_documents
from picollm_lite.evaluation.audit import exploits, perturbation_table
from picollm_lite.evaluation.data_files import DataFile
from picollm_lite.evaluation.drift import require_same_tokens
from picollm_lite.evaluation.exam import Exam, Measured, Reference, measure
from picollm_lite.models import RewardModel, best_device, load_policy
from picollm_lite.paths import shown
from picollm_lite.world.asks import read, reference_answer
from picollm_lite.world.concepts import Concept


@dataclass(frozen=True)
class Card:
    """All that a report card shows; reward and audit (as `audit.exploits` ranks it) are None without a reward model."""

    environment: dict[str, str]
    data: Sequence[DataFile]
    exam: Exam
    ref: Measured
    checkpoints: list[Measured]
    reward: str | None
    audit: pd.DataFrame | None


def report_card(
    checkpoints: Sequence[str | Path],
    *,
    ref: str | Path,
    suite: Dataset,
    reward: str | Path | None = None,
    data: Sequence[DataFile] = (),
    answers: int = 4,
    seed: int = 0,
    device: str = "auto",
    max_new_tokens: int = MAX_NEW_TOKENS,
    documents: Sequence[str] | None = None,
    concepts: Sequence[Concept] | None = None,
) -> Card:
    """Samples `answers` answers a prompt of the suite (`load_suite`) from every model, and judges them.

    Checkpoints, `ref` and `reward` are folders or hub ids; `documents` and `concepts` are what the alignment tax is
    measured on. All or nothing: a card with a hole reads as if nothing were missing, so the first checkpoint that fails
    raises ValueError with its name. So do a suite without 2 different prompts or with one twice, and no checkpoint.
    """
    prompts = list(suite["prompt"]) if len(suite) else []
    if len(set(prompts)) < max(2, len(prompts)):
        raise ValueError(
            f"expected 2 prompts or more, none of them twice, got {len(prompts)}, {len(set(prompts))} of them different"
        )
    if answers < 1:
        raise ValueError(f"expected at least 1 answer a prompt, got {answers}")
    ref_name, *names = checkpoint_names([ref, *checkpoints])
    device = best_device() if device == "auto" else device
    score_fn = RewardModel.load(reward, device=device).score if reward is not None else None
    documents = held_out_documents() if documents is None else documents
    exam = Exam(prompts, list(suite["split"]), answers, seed, score_fn, max_new_tokens, documents, concepts)
    ref_model, ref_tokenizer = load_policy(ref, device=device)
    reference = Reference(measure(exam, ref_name, ref, ref_model, ref_tokenizer), ref_model)
    measured = []
    for name, folder in zip(names, checkpoints, strict=True):
        try:
            policy, tokenizer = load_policy(folder, device=device)
            require_same_tokens(policy, ref_model, tokenizer, ref_tokenizer)
            measured.append(measure(exam, name, folder, policy, tokenizer, reference))
        except Exception as error:  # whatever is wrong with it, it has a name
            raise ValueError(f"checkpoint {name}: {error}") from error
    audited = None if reward is None else shown(reward)
    return Card(environment(device), data, exam, reference.measured, measured, audited, audit(exam))


def checkpoint_names(folders: Sequence[str | Path]) -> list[str]:
    """The last part of each path, or all of it where two end alike; the reference comes first.

    Raises ValueError where nothing stands beside the reference, and for a folder given twice.
    """
    if len(folders) < 2:
        raise ValueError("expected at least one checkpoint beside the reference, got none")
    places = [Path(folder).resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(
                f"{folder} is given twice, the reference counted too, which has its own column: give it once"
            )
    last = [place.name for place in places]
    return [name if last.count(name) == 1 else shown(folder) for name, folder in zip(last, folders, strict=True)]


def environment(device: str) -> dict[str, str]:
    """Where, when and with what the card is made; another number of threads changes the last digits."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.device(device).type == "cuda" else ""
    return {
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "versions": f"picollm_lite {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, numpy {np.__version__}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{gpu}",
        "device": f"{device}, {torch.get_num_threads()} CPU threads",
    }


def audit(exam: Exam) -> pd.DataFrame | None:
    """What the reward model will be exploited for, by edits of perfect answers to the suite; None without one."""
    if exam.score_fn is None:
        return None
    perfect = [reference_answer(read(prompt)) for prompt in exam.prompts]
    return exploits(perturbation_table(exam.score_fn, exam.prompts, perfect, seed=exam.seed))
