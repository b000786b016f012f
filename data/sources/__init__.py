"""Sources of other formats: tables, datasets, audiofolders, NeMo, Kaldi and Lhotse manifests, and chats about audio."""
