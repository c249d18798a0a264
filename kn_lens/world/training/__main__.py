"""``python -m kn_lens.world.training NAME``: train an embedded model and write its checkpoint."""

from kn_lens.world.training.make import main

raise SystemExit(main())
