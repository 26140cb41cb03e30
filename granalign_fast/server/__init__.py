"""The HTTP service: search, videos, media and jobs of one library (the extra `[serve]`).

Read `app.create_app` for the routes, `engine.Engine` for the models and the library, and
`batcher.Batcher` for how requests share batches. Only `granalign serve` imports this folder.
"""
