"""TempBalance's paper on image classification: models, data, training."""
