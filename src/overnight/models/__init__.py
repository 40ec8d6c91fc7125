"""The Lightning modules that come with overnight. Their paths are public: configs name them."""
