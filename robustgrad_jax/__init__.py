"""Train classifiers whose attributions resist perturbation, by local gradient alignment (Joo et al., AAAI 2023).

Public, each a module or a folder of this package:

    models          create, from_torch, load
    regularizers    gradient_alignment, hessian_norm, create, and the classes of all penalties
    attributions    gradient, integrated_gradients, smoothgrad, grad_cam, …; create
    lrp             relevance
    attacks         manipulate, top_k, mass_center, pgd, random_sign; Ball, Draws
    metrics         cosine, pearson, ssim, …; insertion and deletion curves
    sensitivity     max_sensitivity, local_lipschitz, infidelity, …
    gradients       input_gradient, hessian_vector_product, draw_noise
"""
