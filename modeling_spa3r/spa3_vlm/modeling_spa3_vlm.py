"""Spa3-VLM: a vision-language model whose image features query the latents of the scene that they show.

Deviations from the official code:
- The vision-language model is held whole and runs its own forward; its image features are fused and handed back to it.
  Nothing of it is copied, and any VLM with Qwen2.5-VL's interface fits.
- A batch holds scenes of different view counts and sizes, and rows without images; each sees its own latents only,
  where the official code lets all rows attend to the latents of all.
- A scene can be encoded once (`encode_scene`) and its latents be passed in from then on.
- A fresh adapter is exactly silent, also after `from_pretrained`, where the official code's is random.

Dimensions: T image tokens of a scene (those of all its views), L latents, D latent size, C hidden size of the VLM.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..layers import MLP, attend
from ..spa3r.modeling_spa3r import Spa3RModel
from ..vggt.modeling_vggt import VGGTModel, check_pixel_range
from .input_checks import check_inputs, check_latents, split_views

__all__ = ["Spa3VLMForConditionalGeneration", "Spa3VLMModel", "Spa3VLMPreTrainedModel"]

logger = logging.get_logger(__name__)


class Spa3RSceneEncoder(Spa3RModel):
    """Spa3R over all scenes of a batch in one call: processes that hold parts of it gather it once for a batch,
    together, however many scenes each of them has."""

    def forward(self, scenes: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            scenes (`list[torch.Tensor]` of shape `(num_views, 3, height, width)`): Views of each scene, RGB in [0, 1].

        Returns:
            `list[torch.Tensor]` of shape `(num_latents, latent_size)`: Latents of each scene.
        """
        # A scene by itself: the number and size of its views are its own, and it fills an accelerator alone.
        encode = super().forward
        return [encode(scene[None]).latents.squeeze(0) for scene in scenes]


class VGGTSceneEncoder(VGGTModel):
    """VGGT's patch tokens in the place of Spa3R's latents (paper Tab. 3): of all views, of the last layer but one."""

    def forward(self, scenes: Sequence[Tensor]) -> list[Tensor]:
        """See `Spa3RSceneEncoder.forward`; a scene has as many latents as patches in all its views."""
        encode, layer = super().forward, self.config.num_hidden_layers - 2
        latents = []
        for scene in scenes:
            if scene.device.type != "cpu":
                check_pixel_range(scene)
            (tokens,) = encode(scene[None], output_layers=(layer,)).layer_patch_tokens
            latents.append(tokens.flatten(0, 2))
        return latents


class SceneQuery(nn.Module):
    """Image tokens attend to the latents of their own scene (paper Eq. 14).

    Not named an attention, nor is what holds it: by that name the library finds classes that do not call its attention
    interface in their own file, and would refuse to `set_attn_implementation`.
    """

    is_causal = False

    def __init__(self, config: Spa3VLMConfig):
        super().__init__()
        text_config = config.get_text_config()
        size = text_config.hidden_size
        self.config = config
        self.num_heads = text_config.num_attention_heads
        self.head_dim = size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.q_norm = nn.LayerNorm(self.head_dim)
        self.k_norm = nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(size, size)

    def forward(self, image_tokens: Tensor, latents: Tensor, num_tokens: list[int], num_latents: list[int]) -> Tensor:
        """
        Args:
            image_tokens (`torch.Tensor` of shape `(sum(num_tokens), hidden_size)`): Of all scenes, one after another.
            latents (`torch.Tensor` of shape `(sum(num_latents), hidden_size)`): Likewise.
            num_tokens, num_latents (`list[int]`): Of each scene.

        Returns:
            `torch.Tensor` of shape `(sum(num_tokens), hidden_size)`.
        """
        # Layers run once over all scenes, so that processes with other batches stay in step; only the product, which
        # has no weights, is of each scene by itself: no padding, and no mask that could leak.
        query, key, value = self.q_proj(image_tokens), self.k_proj(latents), self.v_proj(latents)
        query, key, value = (states.unflatten(-1, (self.num_heads, -1)) for states in (query, key, value))
        query, key = self.q_norm(query).to(value.dtype), self.k_norm(key).to(value.dtype)
        scenes = zip(query.split(num_tokens), key.split(num_latents), value.split(num_latents), strict=True)
        output = [attend(self, *(states.transpose(0, 1)[None] for states in scene))[0] for scene in scenes]
        return self.proj(torch.cat(output).flatten(1))


class QueryFusion(nn.Module):
    """Adds to each image token what it finds in its scene's latents, through a gated adapter (paper Eq. 14-15)."""

    def __init__(self, config: Spa3VLMConfig):
        super().__init__()
        size = config.get_text_config().hidden_size
        self.projector = MLP(config.latent_size, size, size)
        self.cross_attention = SceneQuery(config)
        self.norm = nn.LayerNorm(size)
        self.adapter = MLP(size, size // 4, size)
        self.adapter.fc2.starts_at_zero = True
        self.gate = nn.Linear(size, size)

    def forward(self, image_tokens: list[Tensor], latents: list[Tensor]) -> list[Tensor]:
        """
        Args:
            image_tokens (`list[torch.Tensor]` of shape `(num_tokens, hidden_size)`): Of each scene.
            latents (`list[torch.Tensor]` of shape `(num_latents, latent_size)`): Of each scene.

        Returns:
            `list[torch.Tensor]` of shape `(num_tokens, hidden_size)`.
        """
        num_tokens, num_latents = [len(tokens) for tokens in image_tokens], [len(scene) for scene in latents]
        residual, latents = torch.cat(image_tokens), torch.cat(latents)
        queried = self.norm(self.cross_attention(residual, self.projector(latents), num_tokens, num_latents))
        fused = residual + self.adapter(queried) * self.gate(queried).sigmoid()
        return list(fused.to(residual.dtype).split(num_tokens))


class AppendFusion(nn.Module):
    """Lets the projected latents of a scene follow its image tokens (paper Tab. 5)."""

    def __init__(self, config: Spa3VLMConfig):
        super().__init__()
        size = config.get_text_config().hidden_size
        self.projector = MLP(config.latent_size, size, size)

    def forward(self, image_tokens: list[Tensor], latents: list[Tensor]) -> list[Tensor]:
        """See `QueryFusion.forward`; each scene gets longer by its number of latents."""
        projected = self.projector(torch.cat(latents)).split([len(scene) for scene in latents])
        pairs = zip(image_tokens, projected, strict=True)
        return [torch.cat([tokens, scene.to(tokens.dtype)]) for tokens, scene in pairs]


SPATIAL_ENCODERS = {
    "spa3r": lambda config: Spa3RSceneEncoder(config.spatial_config),
    "vggt": lambda config: VGGTSceneEncoder(config.spatial_config.vggt_config),
}
FUSIONS = {"cross_attention": QueryFusion, "append": AppendFusion}


class Spa3VLMPreTrainedModel(PreTrainedModel):
    config: Spa3VLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # Token-weighted losses under gradient accumulation.
    accepts_loss_kwargs = True
    _no_split_modules = ["QueryFusion", "AppendFusion", "Spa3RSceneEncoder", "VGGTSceneEncoder"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_compile_fullgraph = True

    def post_init(self):
        super().post_init()
        # FSDP refuses classes that the model does not have. It takes the spatial encoder as a whole, as processes with
        # other scenes would gather its layers another number of times.
        modules = dict(self.named_modules())
        inside = [name for name, module in modules.items() if isinstance(module, Spa3RSceneEncoder | VGGTSceneEncoder)]
        self._no_split_modules &= {
            type(module).__name__
            for name, module in modules.items()
            if not name.startswith(tuple(f"{encoder}." for encoder in inside))
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        # Marked on the layer itself: a module without parameters of its own is never asked to initialise them.
        if getattr(module, "starts_at_zero", False):
            init.zeros_(module.weight)


class Spa3VLMModel(Spa3VLMPreTrainedModel):
    """The VLM without its head, the spatial encoder, and where they meet."""

    # A checkpoint with the head is welcome.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: Spa3VLMConfig):
        super().__init__(config)
        self.vlm = AutoModel.from_config(config.vlm_config)
        has_fusion = config.fusion != "none"
        self.spatial_encoder = SPATIAL_ENCODERS[config.spatial_representation](config) if has_fusion else None
        self.fusion = FUSIONS[config.fusion](config) if has_fusion else None
        self.post_init()

    @property
    def rope_deltas(self) -> Tensor | None:
        """What the VLM adds to a text position in the last batch, whose images span fewer positions than tokens."""
        return self.vlm.rope_deltas

    @rope_deltas.setter
    def rope_deltas(self, deltas: Tensor | None):
        self.vlm.rope_deltas = deltas

    @property
    def language_model(self) -> nn.Module:
        """The VLM's; by this name the library finds its embeddings and the decoder."""
        return self.vlm.language_model

    def frozen_modules(self) -> dict[str, nn.Module]:
        """What instruction tuning leaves as it is (paper 4.2), by its prefix in the state dict."""
        modules = {"vlm.visual": self.vlm.visual}
        return modules if self.spatial_encoder is None else modules | {"spatial_encoder": self.spatial_encoder}

    def freeze_encoders(self):
        """Turn off the gradients of `frozen_modules`; call it after loading, which turns all gradients on."""
        for module in self.frozen_modules().values():
            module.requires_grad_(False)

    def train(self, mode: bool = True):
        """Switch to training mode, except for the spatial encoder, which is never trained here."""
        super().train(mode)
        if self.spatial_encoder is not None:
            self.spatial_encoder.eval()
        return self

    def encode_scene(
        self, pixel_values_geometry: Tensor, geometry_sizes: Tensor, num_views: Tensor | None = None
    ) -> Tensor:
        """Encode scenes once, for any number of questions about them.

        Args:
            pixel_values_geometry, geometry_sizes, num_views: See `forward`; by default all views are of one scene.

        Returns:
            `torch.FloatTensor` of shape `(num_scenes, num_latents, latent_size)`: What to pass as `spatial_latents` in
            the place of these inputs. Scenes without views are left out.
        """
        if self.spatial_encoder is None:
            raise ValueError("This model has `fusion='none'` and encodes no scenes; load one with another `fusion`.")
        latents = self._encode_scenes(pixel_values_geometry, geometry_sizes, num_views)
        if len({scene.shape for scene in latents}) != 1:
            raise ValueError(
                f"These {len(latents)} scenes have different numbers of latents, {[len(scene) for scene in latents]}, "
                "and cannot be one tensor; encode them one by one."
            )
        return torch.stack(latents)

    @torch.no_grad()
    def see_images(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Look at images once, for training on many questions about them.

        Args:
            pixel_values, image_grid_thw: See `forward`.

        Returns:
            `torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`: What to pass as `vision_features` in the
            place of `pixel_values`.
        """
        return torch.cat(
            list(self.vlm.get_image_features(pixel_values, image_grid_thw, return_dict=True).pooler_output)
        )

    @torch.no_grad()
    def _encode_scenes(
        self, pixel_values_geometry: Tensor, geometry_sizes: Tensor | None, num_views: Tensor | None
    ) -> list[Tensor]:
        """Latents of each scene that has views, of shape `(num_latents, latent_size)`."""
        return self.spatial_encoder(split_views(pixel_values_geometry, geometry_sizes, num_views))

    def _keeps_step(self, past_key_values: Cache | None = None) -> bool:
        """Whether encoders and adapter run without images too, for the sake of other processes that have some: those
        that train together reduce gradients of the same weights in the same order, and those that hold parts of the
        weights (FSDP, ZeRO-3) gather them together."""
        weight = next(self.parameters())
        if hasattr(weight, "device_mesh") or hasattr(weight, "ds_id"):
            return past_key_values is None or not past_key_values.get_seq_length()
        return self.training and torch.is_grad_enabled()  # not while a model in training mode generates

    def _encode_nothing(self, device: torch.device, is_encoded: bool, is_seen: bool) -> Tensor:
        """Zero, by way of all that image features come from; other processes have given latents if `is_encoded`, and
        features if `is_seen`."""
        config = self.config.vlm_config.vision_config
        if is_seen:
            image_tokens = torch.zeros(1, self.config.get_text_config().hidden_size, device=device, dtype=self.dtype)
        else:
            side = config.spatial_merge_size
            patch_size = config.in_channels * config.temporal_patch_size * config.patch_size**2
            patches = torch.zeros(side**2, patch_size, device=device)
            grid = torch.tensor([[1, side, side]], device=device)
            (image_tokens,) = self.vlm.get_image_features(patches, grid, return_dict=True).pooler_output
        return 0 * image_tokens.sum() if self.fusion is None else self._fuse_nothing(image_tokens, is_encoded)

    def _fuse_nothing(self, image_tokens: Tensor, is_encoded: bool) -> Tensor:
        """Zero, by way of the adapter, for image tokens without a scene."""
        if not is_encoded:
            self.spatial_encoder([])
        latents = image_tokens.new_zeros(1, self.config.latent_size)
        return 0 * self.fusion([image_tokens], [latents])[0].sum()

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_geometry: Tensor | None = None,
        geometry_sizes: Tensor | None = None,
        num_views: Tensor | None = None,
        spatial_latents: Tensor | Sequence[Tensor] | None = None,
        vision_features: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The VLM's image features, fused with their scenes; see `forward` for the arguments.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` is a list with the tokens of each image, of shape
            `(num_tokens, hidden_size)`; with `fusion="append"` the latents follow the last image of each scene.
        """
        if vision_features is None:
            output = self.vlm.get_image_features(pixel_values, image_grid_thw, return_dict=True, **kwargs)
        else:
            lengths = image_grid_thw.prod(-1) // self.config.vlm_config.vision_config.spatial_merge_size**2
            output = BaseModelOutputWithPooling(pooler_output=vision_features.to(self.dtype).split(lengths.tolist()))
        images = list(output.pooler_output)
        if self.fusion is None:
            return output
        if pixel_values_geometry is None and spatial_latents is None:
            logger.warning_once(
                "There are images, but neither `pixel_values_geometry` nor `spatial_latents`: the model answers as "
                "the plain vision-language model, without knowing the scene."
            )
            if self._keeps_step():
                images[0] = images[0] + self._fuse_nothing(images[0], is_encoded=False)
                output.pooler_output = images
            return output
        counts = [len(images)] if num_views is None else [count for count in num_views.tolist() if count]
        if spatial_latents is None:
            spatial_latents = self._encode_scenes(pixel_values_geometry, geometry_sizes, num_views)
        else:
            check_latents(self.config, spatial_latents, len(counts))
        output.pooler_output = self._fuse(images, counts, spatial_latents)
        return output

    def _fuse(self, images: list[Tensor], counts: list[int], latents: Sequence[Tensor]) -> list[Tensor]:
        """Fuse tokens of images, `counts` of them in a scene, with the latents of their scenes."""
        if sum(counts) != len(images):
            raise ValueError(
                f"`num_views` counts {sum(counts)} images, but `image_grid_thw` {len(images)}; pass what the "
                "processor returned, together."
            )
        ends = list(accumulate(counts))
        scenes = [images[end - count : end] for count, end in zip(counts, ends, strict=True)]
        tokens = [torch.cat(scene) for scene in scenes]
        latents = [scene.to(device=tokens[0].device, dtype=tokens[0].dtype) for scene in latents]
        fused = []
        for scene, scene_tokens in zip(scenes, self.fusion(tokens, latents), strict=True):
            lengths = [len(image) for image in scene]
            lengths[-1] += self.config.num_appended_tokens
            fused += scene_tokens.split(lengths)
        return fused

    def _positions_after(
        self, past_key_values: Cache | None, num_tokens: int, attention_mask: Tensor | None, has_images: bool
    ) -> Tensor | None:
        """Positions of new tokens, of shape `(batch_size, num_tokens)`, where the VLM's own forward has them wrong."""
        if past_key_values is None or not past_key_values.get_seq_length():
            if not has_images:
                # What an earlier batch left.
                self.rope_deltas = None
            return None
        if attention_mask is None or attention_mask.ndim != 2:
            return None
        # The VLM would give one to each place of the mask, also to what is in the cache.
        positions = (attention_mask.long().cumsum(-1) - 1)[:, -num_tokens:]
        return positions if self.rope_deltas is None else positions + self.rope_deltas

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        pixel_values_geometry: Tensor | None = None,
        geometry_sizes: Tensor | None = None,
        num_views: Tensor | None = None,
        spatial_latents: Tensor | Sequence[Tensor] | None = None,
        vision_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        All of this is what `Spa3VLMProcessor` returns; the rest is as in the VLM's own forward.

        pixel_values (`torch.FloatTensor` of shape `(num_patches, patch_size)`):
            Patches of all images, one after another, as the VLM's vision tower takes them.
        image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`):
            Frames, rows and columns of each image's patches.
        mm_token_type_ids (`torch.IntTensor` of shape `(batch_size, sequence_length)`):
            1 where an image's placeholder stands, else 0.
        pixel_values_geometry (`torch.FloatTensor` of shape `(num_pixels, 3)`, *optional*):
            The same images for the spatial encoder, RGB in [0, 1], row by row. They are flat, as scenes have views of
            different numbers and sizes, and so that whatever makes batches can put them one after another.
        geometry_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
            Height and width of each in pixels, one size within a scene.
        num_views (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            How many of the images are each row's; they are one scene, the first its reference view. A batch of one
            row can do without.
        spatial_latents (`torch.FloatTensor` of shape `(num_scenes, num_latents, latent_size)`, *optional*):
            What `encode_scene` returned, one for each row that has images; used in the place of
            `pixel_values_geometry`, even if that is given too. Of no scene, it tells in training that no process
            encodes any.
        vision_features (`torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
            What `see_images` returned, for training, in the place of `pixel_values`. Of no image, it tells in training
            that no process looks at any.
        mm_encoder_outputs (`dict`, *optional*):
            `{"image": get_image_features(...)}`, in the place of `pixel_values` and of what belongs to the scene.
        """
        nothing = None
        has_features = vision_features is not None and len(vision_features) > 0
        if pixel_values is not None or has_features or position_ids is None:
            check_inputs(
                self.config,
                input_ids,
                past_key_values=past_key_values,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                mm_token_type_ids=mm_token_type_ids,
                pixel_values_geometry=pixel_values_geometry,
                num_views=num_views,
                spatial_latents=spatial_latents,
                vision_features=vision_features,
                mm_encoder_outputs=mm_encoder_outputs,
            )
        if position_ids is None:
            num_tokens = (inputs_embeds if input_ids is None else input_ids).shape[1]
            position_ids = self._positions_after(
                past_key_values, num_tokens, attention_mask, has_images=image_grid_thw is not None
            )
        if pixel_values is not None or has_features:
            features = self.get_image_features(
                pixel_values,
                image_grid_thw,
                pixel_values_geometry=pixel_values_geometry,
                geometry_sizes=geometry_sizes,
                num_views=num_views,
                spatial_latents=spatial_latents,
                vision_features=vision_features if has_features else None,
                return_dict=True,
            )
            mm_encoder_outputs = {"image": features}
        elif inputs_embeds is None and not mm_encoder_outputs and self._keeps_step(past_key_values):
            nothing = self._encode_nothing(
                input_ids.device, is_encoded=spatial_latents is not None, is_seen=vision_features is not None
            )
        outputs = self.vlm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        if nothing is not None:
            # Before the text in the forward pass and after it in the backward pass, as with images.
            outputs.last_hidden_state = outputs.last_hidden_state + nothing
        return outputs


class Spa3VLMForConditionalGeneration(Spa3VLMPreTrainedModel, GenerationMixin):
    """Spa3-VLM with its language head: photos and a question in, an answer out."""

    _tied_weights_keys = {"lm_head.weight": "model.vlm.language_model.embed_tokens.weight"}

    def __init__(self, config: Spa3VLMConfig):
        super().__init__(config)
        text_config = config.get_text_config()
        self.model = Spa3VLMModel(config)
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.post_init()

    def freeze_encoders(self):
        """See `Spa3VLMModel.freeze_encoders`."""
        self.model.freeze_encoders()

    def encode_scene(
        self, pixel_values_geometry: Tensor, geometry_sizes: Tensor, num_views: Tensor | None = None
    ) -> Tensor:
        """See `Spa3VLMModel.encode_scene`."""
        return self.model.encode_scene(pixel_values_geometry, geometry_sizes, num_views)

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor | None = None, **kwargs):
        """See `Spa3VLMModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        pixel_values_geometry: Tensor | None = None,
        geometry_sizes: Tensor | None = None,
        num_views: Tensor | None = None,
        spatial_latents: Tensor | Sequence[Tensor] | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""
        See `Spa3VLMModel.forward`, and besides:

        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Tokens to predict, -100 where none is.
        logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
            Compute the logits of so many last positions, or of these positions; 0 means of all.

        Example:

        ```python
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor
        >>> import spa3r  # registers the Auto classes

        >>> model = AutoModelForImageTextToText.from_pretrained("spa3-vlm-4b")
        >>> processor = AutoProcessor.from_pretrained("spa3-vlm-4b")
        >>> content = [{"type": "image", "path": path} for path in ("door.jpg", "sofa.jpg")]
        >>> content.append({"type": "text", "text": "How many chairs are in the room?"})
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": content}],
        ...     tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
        ... )
        >>> tokens = model.generate(**inputs, max_new_tokens=16)
        >>> processor.decode(tokens[0, inputs.input_ids.shape[1]:], skip_special_tokens=True)
        ```
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            pixel_values_geometry=pixel_values_geometry,
            geometry_sizes=geometry_sizes,
            num_views=num_views,
            spatial_latents=spatial_latents,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict) -> Tensor:
        """Positions of shape `(4, batch_size, sequence_length)`: those in the text, then time, row and column."""
        text = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        input_ids, cache = model_kwargs.get("input_ids", inputs_tensor), model_kwargs.get("past_key_values")
        if not input_ids.shape[1]:
            input_ids = None  # only `inputs_embeds`
        is_whole = (inputs_tensor if input_ids is None else input_ids).shape[1] == text.shape[1]
        num_cached = int(cache.get_seq_length()) if is_whole and cache is not None else 0
        check_inputs(self.config, **{**model_kwargs, "input_ids": input_ids, "num_cached": num_cached})
        types, grids = model_kwargs.get("mm_token_type_ids"), model_kwargs.get("image_grid_thw")
        if not is_whole:
            # Only new tokens, after those of the last call.
            grid = text if self.model.rope_deltas is None else text + self.model.rope_deltas
            grid = grid.expand(3, -1, -1)
        elif input_ids is not None and types is not None and grids is not None:
            # The whole sequence is here, so nothing remembered of an earlier call is needed.
            mask = model_kwargs.get("attention_mask")
            grid, self.model.rope_deltas = self.model.vlm.get_rope_index(
                input_ids, types, image_grid_thw=grids, attention_mask=mask
            )
        else:
            grid, self.model.rope_deltas = text.expand(3, -1, -1), None
        return torch.cat([text[None], grid])
