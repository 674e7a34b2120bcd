"""The layers of the towers and of the language model, on batches.  W: a layer's tensors by their names within the layer."""
import torch
import torch._dynamo
import torch.nn.functional as F

VISION_EPS, ENCODER_EPS, GEMMA_EPS, ADAPTER_EPS = 1e-6, 1e-5, 1e-6, 1e-5


def rms(x, eps):
    """Root mean square norm without weights, in f32."""
    h = x.float()
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)


def gemma_norm(x, weight):
    return rms(x, GEMMA_EPS) * (1.0 + weight)


def layer_norm(x, W, name, eps):
    return F.layer_norm(x, (x.shape[-1],), W[name + ".weight"], W[name + ".bias"], eps)


def linear(x, W, name):
    return F.linear(x, W[name + ".weight"], W.get(name + ".bias"))


def encoder_attention(q, k, v, heads):
    """[n,t,c] each -> [n,t,c]"""
    n, t, c = q.shape
    q, k, v = (z.reshape(n, t, heads, c // heads).transpose(1, 2) for z in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)


def vision_layer(x, W, heads):
    """x [n,729,V]"""
    h = layer_norm(x, W, "layer_norm1", VISION_EPS)
    weight = torch.cat([W[f"self_attn.{name}_proj.weight"] for name in "qkv"])
    bias = torch.cat([W[f"self_attn.{name}_proj.bias"] for name in "qkv"])
    a = encoder_attention(*F.linear(h, weight, bias).chunk(3, -1), heads)
    x = x + linear(a, W, "self_attn.out_proj").to(x.dtype)
    h = layer_norm(x, W, "layer_norm2", VISION_EPS)
    h = F.gelu(linear(h, W, "mlp.fc1"), approximate="tanh")
    return x + linear(h, W, "mlp.fc2").to(x.dtype)


def audio_layer(x, W, heads):
    """x [n,1500,A]"""
    h = layer_norm(x, W, "self_attn_layer_norm", ENCODER_EPS)
    a = encoder_attention(*(linear(h, W, f"self_attn.{name}_proj") for name in "qkv"), heads)
    x = x + linear(a, W, "self_attn.out_proj").to(x.dtype)
    h = layer_norm(x, W, "final_layer_norm", ENCODER_EPS)
    return x + linear(F.gelu(linear(h, W, "fc1")), W, "fc2").to(x.dtype)


def feed_forward(x, W):
    h = gemma_norm(x, W["pre_feedforward_layernorm.weight"])
    h = F.gelu(linear(h, W, "mlp.gate_proj"), approximate="tanh") * linear(h, W, "mlp.up_proj")
    return x + gemma_norm(linear(h, W, "mlp.down_proj"), W["post_feedforward_layernorm.weight"]).to(x.dtype)


def media_keys(e, W):
    """Keys and values of tokens that enter a layer.  e [n,D]"""
    h = gemma_norm(e, W["input_layernorm.weight"])
    return linear(h, W, "self_attn.k_proj"), linear(h, W, "self_attn.v_proj")


def media_layer(e, W, kv_heads, group, head_dim):
    """Keys, values, and the tokens as they leave the layer.  A token of image or sound attends to itself alone, so its values
    pass o_proj with each head of keys repeated `group` times: the repetition is summed into o_proj's columns."""
    k, v = media_keys(e, W)
    o = W["self_attn.o_proj.weight"]
    o = o.reshape(o.shape[0], kv_heads, group, head_dim).sum(2).reshape(o.shape[0], kv_heads * head_dim)
    e = e + gemma_norm(F.linear(v, o), W["post_attention_layernorm.weight"]).to(e.dtype)
    return k, v, feed_forward(e, W)


def capped_softmax(scores, cap):
    return torch.softmax(torch.tanh(scores.float() / cap) * cap, -1)


class Functions:
    """The three that take the time, as they are or compiled."""

    def __init__(self, compiled=False):
        torch._dynamo.config.suppress_errors = True     # what does not compile runs as it is
        wrap = torch.compile if compiled else lambda f, **_: f
        self.vision_layer = wrap(vision_layer)
        self.media_layer = wrap(media_layer, dynamic=True)
        self.capped_softmax = wrap(capped_softmax, dynamic=True)
