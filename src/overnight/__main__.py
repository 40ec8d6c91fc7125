from overnight.system import shadowing

shadowing.exit_if_any()  # `python -m` has put the start folder on the import path already

from overnight.cli.main import main  # noqa: E402

main()
