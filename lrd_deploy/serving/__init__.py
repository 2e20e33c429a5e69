"""Models packaged for a server: Triton model repositories, their manifests, and the check that needs no server."""
