"""Turn labelled tokens into a fitted head and its threshold: features, fit, calibration."""

from hf_judge.training.arguments import JudgeTrainingArguments
from hf_judge.training.fit import TrainedJudge, fold_scaler, part_of, train_judge

__all__ = ["JudgeTrainingArguments", "TrainedJudge", "fold_scaler", "part_of", "train_judge"]
