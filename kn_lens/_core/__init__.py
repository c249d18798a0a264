"""What every package stands on: files that appear whole, texts fit to be shown, intervals and tests."""
