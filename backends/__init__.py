"""The cache backends a deployment can name; dogpile.cache finds them through its entry points."""
