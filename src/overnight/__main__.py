from overnight.cli.main import main

main()
