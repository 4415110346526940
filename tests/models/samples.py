"""What both versions of transformers are asked for."""

TEXTS = ["The quick brown fox", " two  spaces\n", "<|im_start|>user\nhi<|im_end|>\n", "</s> x"]
IDS = [1, 2, 3, 40, 17, 299, 5, 6, 7, 250, 9]
