"""Text in and out: tokens, the checkpoint's chat template, conversations, thoughts."""
