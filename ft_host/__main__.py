"""`python -m ft_host`, the same as `ft-host`."""

from ft_host.cli import main

raise SystemExit(main())
