import torch
import torch.nn.functional as F

from lmcore.model.attention import widened


def test_repeated_key_heads_are_shared_ones():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    shared = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    repeated = F.scaled_dot_product_attention(q, widened(k, 2), widened(v, 2), attn_mask=mask)
    torch.testing.assert_close(repeated, shared)
