"""Gaussian diffusion over latents: noise schedules, the forward process, samplers and latent statistics.

It knows tensors only, nothing of models, data or configuration; what a user got wrong raises ``ValueError`` with the
remedy.

    from diffusion.process import NoiseProcess
    from diffusion.sampling import sample
    from diffusion.schedule import alphas_cumprod

    process = NoiseProcess(alphas_cumprod("linear", 1000))
    x0 = sample(predict, process, noise, sampler="ddim", steps=4)
"""
