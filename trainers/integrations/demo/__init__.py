"""The page that shows what the latent of a scene knows: `spa3r demo`."""
