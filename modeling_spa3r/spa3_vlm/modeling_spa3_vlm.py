"""Spa3-VLM: a vision-language model whose image features query the latents of the scene they show.

Deviations from the official code:
- The VLM is a submodule that runs its own forward. Its image features are fused and passed back to it as
  `mm_encoder_outputs`, so no forward is copied, and any VLM with the interface of `bases.BaseVLM` fits.
- A batch may mix scenes with different view counts and image sizes, and rows without images. Each row sees the latents
  of its own scene only; in the official code all rows attend to the latents of the whole batch.
- A scene can be encoded once with `encode_scene` and reused as `spatial_latents`.
- A fresh adapter leaves the VLM's logits unchanged, also after `from_pretrained`. The official code's is random there.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import logging

from ...configuration.configuration_spa3_vlm import Spa3VLMConfig
from ..library import CheckedModel, can_return_tuple
from ..spa3r.modeling_spa3r import Spa3RModel
from ..vggt.modeling_vggt import VGGTModel
from .bases import add_empty_features, pack_features, require_base, unpack_features
from .fusion import FUSIONS
from .input_checks import (
    cached_offset,
    check_inputs,
    check_latents,
    copy_to_host,
    find_placeholders,
    is_given,
    require_scene,
    split_views,
)
from .lockstep import dummy_fusion_pass, dummy_image_pass, needs_dummy_pass, unsplit_classes
from .scene_in_pixels import detach_latents

__all__ = ["Spa3VLMForConditionalGeneration", "Spa3VLMModel", "Spa3VLMPreTrainedModel"]

logger = logging.get_logger(__name__)

# A single scene of 24 views of 518 x 392 fills an accelerator; many small ones are needed for that.
PIXELS_PER_CALL = 24 * 518 * 392


def encode_together(scenes: Sequence[Tensor], encode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Encode scenes of equal shape in one call, as far as they are small.

    Args:
        scenes (`list[torch.Tensor]` of shape `(num_views, 3, height, width)`): Views of each scene.
        encode (`Callable`): Encodes scenes of one shape that are stacked along a new first dimension.

    Returns:
        `list[torch.Tensor]`: The encodings, in the order of the scenes.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, scene in enumerate(scenes):
        by_shape.setdefault(tuple(scene.shape), []).append(index)
    encoded = {}
    for (num_views, _, height, width), indices in by_shape.items():
        size = max(1, PIXELS_PER_CALL // (num_views * height * width))
        for start in range(0, len(indices), size):
            chosen = indices[start : start + size]
            encoded |= zip(chosen, encode(torch.stack([scenes[index] for index in chosen])), strict=True)
    return [encoded[index] for index in range(len(scenes))]


class Spa3RSceneEncoder(Spa3RModel):
    """Spa3R that encodes all scenes of a batch in one call.

    Ranks that shard its weights gather them once per batch, however many scenes each rank has.
    """

    def forward(self, scenes: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            scenes (`list[torch.Tensor]` of shape `(num_views, 3, height, width)`): Views of each scene, RGB in [0, 1].

        Returns:
            `list[torch.Tensor]` of shape `(num_latents, latent_size)`: Latents of each scene.
        """
        encode = super().forward
        return encode_together(scenes, lambda stack: encode(stack, return_dict=True).latents)


class VGGTSceneEncoder(VGGTModel):
    """VGGT's patch tokens instead of Spa3R's latents (paper Tab. 3), from the layer before the last."""

    def forward(self, scenes: Sequence[Tensor]) -> list[Tensor]:
        """See `Spa3RSceneEncoder.forward`. A scene has one latent per patch of all its views."""
        encode, layer = super().forward, self.config.num_hidden_layers - 2

        def encode_stack(stack: Tensor) -> Tensor:
            (tokens,) = encode(stack, output_layers=(layer,), return_dict=True).layer_patch_tokens
            return tokens.flatten(1, 2)

        return encode_together(scenes, encode_stack)


SPATIAL_ENCODERS = {
    "spa3r": lambda config: Spa3RSceneEncoder(config.spatial_config),
    "vggt": lambda config: VGGTSceneEncoder(config.spatial_config.vggt_config),
}


class Spa3VLMPreTrainedModel(CheckedModel):
    config: Spa3VLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # With gradient accumulation the Trainer weighs losses by their number of tokens.
    accepts_loss_kwargs = True
    _no_split_modules = ["QueryFusion", "AppendFusion", "Spa3RSceneEncoder", "VGGTSceneEncoder"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_compile_fullgraph = True

    def post_init(self):
        super().post_init()
        self._no_split_modules = unsplit_classes(self, (Spa3RSceneEncoder, VGGTSceneEncoder))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if getattr(module, "zero_init", False):
            init.zeros_(module.weight)


class Spa3VLMModel(Spa3VLMPreTrainedModel):
    """The VLM without its language head, the spatial encoder, and the fusion of the two."""

    # A checkpoint with a language head loads too.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: Spa3VLMConfig):
        super().__init__(config)
        self.vlm = AutoModel.from_config(config.vlm_config)
        require_base(self.vlm)
        has_fusion = config.fusion != "none"
        self.spatial_encoder = SPATIAL_ENCODERS[config.spatial_representation](config) if has_fusion else None
        self.fusion = FUSIONS[config.fusion](config) if has_fusion else None
        self.post_init()

    @property
    def rope_deltas(self) -> Tensor | None:
        """Offset from token index to text position in the last batch: an image spans fewer positions than tokens."""
        return self.vlm.rope_deltas

    @rope_deltas.setter
    def rope_deltas(self, deltas: Tensor | None):
        self.vlm.rope_deltas = deltas

    @property
    def language_model(self) -> nn.Module:
        """The VLM's language model. Transformers finds embeddings and decoder under this name."""
        return self.vlm.language_model

    def frozen_modules(self) -> dict[str, nn.Module]:
        """Modules that instruction tuning does not train (paper Sec. 4.2), by their prefix in the state dict."""
        modules = {"vlm.visual": self.vlm.visual}
        return modules if self.spatial_encoder is None else modules | {"spatial_encoder": self.spatial_encoder}

    def freeze_encoders(self):
        """Turn off the gradients of `frozen_modules`. Call it after loading, which turns all gradients on."""
        for module in self.frozen_modules().values():
            module.requires_grad_(False)

    def train(self, mode: bool = True):
        """Switch to training mode, except for the spatial encoder, which stays frozen in eval mode."""
        super().train(mode)
        if self.spatial_encoder is not None:
            self.spatial_encoder.eval()
        return self

    def encode_scene(
        self, pixel_values_geometry: Tensor, geometry_sizes: Tensor, num_views: Tensor | None = None
    ) -> Tensor:
        """Encode scenes once, for any number of questions about them.

        Args:
            pixel_values_geometry (`torch.FloatTensor` of shape `(num_pixels, 3)`): See `forward`.
            geometry_sizes (`torch.LongTensor` of shape `(num_images, 2)`): See `forward`.
            num_views (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Number of images of each scene. By default all images show one scene.

        Returns:
            `torch.FloatTensor` of shape `(num_scenes, num_latents, latent_size)`: Pass it to `forward` as
            `spatial_latents`. Scenes without views are left out.

        Raises:
            ValueError: If the model has no fusion, the inputs do not fit together, or the scenes have different
                numbers of latents.
        """
        if self.spatial_encoder is None:
            raise ValueError("A model with `fusion='none'` encodes no scenes; load a model with another `fusion`.")
        latents = self._encode_scenes(pixel_values_geometry, geometry_sizes, num_views)
        if len({scene.shape for scene in latents}) != 1:
            raise ValueError(
                f"{len(latents)} scenes with different numbers of latents, {[len(scene) for scene in latents]}, do "
                "not fit in one tensor; encode them one by one."
            )
        return torch.stack(latents)

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Run the frozen vision tower once, to train on many questions about the same images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_patches, patch_size)`): See `forward`.
            image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`): See `forward`.

        Returns:
            `torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`: Pass it to `forward` as `vision_features`.
            A base with DeepStack adds its features of k layers: `(num_image_tokens, (1 + k) * hidden_size)`.
        """
        return pack_features(self.vlm.get_image_features(pixel_values, image_grid_thw, return_dict=True))

    @torch.no_grad()
    def _encode_scenes(
        self, pixel_values_geometry: Tensor, geometry_sizes: Tensor | None, num_views: Tensor | None
    ) -> list[Tensor]:
        """Latents of shape `(num_latents, latent_size)` of each scene that has views."""
        return self.spatial_encoder(split_views(pixel_values_geometry, geometry_sizes, num_views))

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
        """Compute the VLM's image features and fuse them with their scenes. See `forward` for the arguments.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` is a list of the tokens of each image, each of shape
            `(num_tokens, hidden_size)`. With `fusion="append"` the last image of each scene includes the latents.
        """
        if is_given(vision_features):
            num_tokens = image_grid_thw.prod(-1) // self.config.vlm_config.vision_config.spatial_merge_size**2
            size = self.config.get_text_config().hidden_size
            output = unpack_features(vision_features.to(self.dtype), num_tokens.tolist(), size)
        else:
            output = self.vlm.get_image_features(pixel_values, image_grid_thw, return_dict=True, **kwargs)
        if self.fusion is None:
            return output
        images = list(output.pooler_output)
        if pixel_values_geometry is None and spatial_latents is None:
            logger.warning_once(
                "Images came without `pixel_values_geometry` and `spatial_latents`, so the model answers as the plain "
                "VLM, without the scene; pass one of them."
            )
            if needs_dummy_pass(self):
                images[0] = images[0] + dummy_fusion_pass(self, images[0], has_latents=False)
                output.pooler_output = images
            return output
        geometry_sizes, num_views = copy_to_host(geometry_sizes, num_views)
        counts = [len(images)] if num_views is None else [count for count in num_views.tolist() if count]
        if spatial_latents is None:
            spatial_latents = self._encode_scenes(pixel_values_geometry, geometry_sizes, num_views)
        else:
            check_latents(self.config, spatial_latents, len(counts))
        output.pooler_output = self._fuse(images, counts, spatial_latents)
        if self.config.num_appended_tokens:
            add_empty_features(output)
        return output

    def _fuse(self, images: list[Tensor], counts: list[int], latents: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the tokens of images with the latents of their scenes; `counts` is the number of images per scene."""
        if sum(counts) != len(images):
            raise ValueError(
                f"`num_views` counts {sum(counts)} images, but `image_grid_thw` has {len(images)}; pass the inputs "
                "that one call of the processor returned."
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

    def _position_ids(
        self, past_key_values: Cache | None, num_tokens: int, attention_mask: Tensor | None, has_images: bool
    ) -> Tensor | None:
        """Positions of shape `(batch_size, num_tokens)` of new tokens, or `None` where the VLM's own are right."""
        if past_key_values is None or not past_key_values.get_seq_length():
            if not has_images:
                self.rope_deltas = None  # of an earlier batch
            return None
        if attention_mask is None or attention_mask.ndim != 2:
            self.rope_deltas = cached_offset(past_key_values)
            return None
        # The VLM would return a position for every column of the mask, also for cached tokens.
        positions = (attention_mask.long().cumsum(-1) - 1)[:, -num_tokens:]
        return add_offset(positions, cached_offset(past_key_values))

    def place_images(
        self, input_ids: Tensor, mm_token_type_ids: Tensor, image_grid_thw: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """Positions of shape `(3, batch_size, sequence_length)`: frame, row and column. See `forward`."""
        positions, self.rope_deltas = self.vlm.get_rope_index(
            input_ids, mm_token_type_ids, image_grid_thw=image_grid_thw, attention_mask=attention_mask
        )
        return positions

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
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
        """Run the VLM on text whose image features are fused with their scenes.

        `Spa3VLMProcessor` returns the inputs below; the other arguments are those of the VLM's own forward.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_patches, patch_size)`, *optional*):
                Normalised patches of all images for the vision tower, image after image. Latents of the scenes may
                stand beside the patches instead of being an input of their own, and features of the vision tower
                instead of the patches; see `attach_latents` and `carry_features`.
            image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`, *optional*):
                Frames, rows and columns of patches of each image. Needed with images.
            mm_token_type_ids (`torch.IntTensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 for an image placeholder, 0 for text. Needed with images.
            pixel_values_geometry (`torch.FloatTensor` of shape `(num_pixels, 3)`, *optional*):
                The same images for the spatial encoder, RGB in [0, 1], row-major. They are flat because scenes differ
                in number and size of views; a collator concatenates them.
            geometry_sizes (`torch.LongTensor` of shape `(num_images, 2)`, *optional*):
                Height and width in pixels of each image for the spatial encoder. Images of one scene have one size.
            num_views (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Number of images in each row. They show one scene, and the first is its reference view. Optional for a
                single row.
            spatial_latents (`torch.FloatTensor` of shape `(num_scenes, num_latents, latent_size)`, *optional*):
                Output of `encode_scene`, one entry for each row with images. Takes precedence over
                `pixel_values_geometry`. In training, an empty tensor says that no rank runs the spatial encoder.
            vision_features (`torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
                Output of `encode_images`, instead of `pixel_values`. In training, an empty tensor says that no rank
                runs the vision tower.
            mm_encoder_outputs (`dict[str, BaseModelOutputWithPooling]`, *optional*):
                `{"image": get_image_features(...)}`, instead of `pixel_values` and the inputs of the scene.

        Returns:
            `BaseModelOutputWithPast`: The VLM's output.

        Raises:
            ValueError: If images and text do not fit together; see `check_inputs`.
        """
        has_images = pixel_values is not None or is_given(vision_features)
        grid = image_grid_thw
        if has_images:
            # Checks, scenes and positions read these. The vision tower needs the grid where its patches are.
            grid, geometry_sizes, num_views = copy_to_host(image_grid_thw, geometry_sizes, num_views)
            scene = {"pixel_values": pixel_values, "spatial_latents": spatial_latents, "num_views": num_views}
            scene |= {"vision_features": vision_features}
            text = {"image_grid_thw": grid, "mm_token_type_ids": mm_token_type_ids}
            detached = detach_latents(self.config, scene | text)
            pixel_values, spatial_latents, num_views, vision_features = (detached[name] for name in scene)
        image_inputs = {
            "pixel_values": pixel_values,
            "image_grid_thw": grid if pixel_values is None else image_grid_thw,
            "pixel_values_geometry": pixel_values_geometry,
            "geometry_sizes": geometry_sizes,
            "num_views": num_views,
            "spatial_latents": spatial_latents,
            "vision_features": vision_features,
        }
        if has_images and self.training and self.fusion is not None:
            require_scene(pixel_values_geometry, spatial_latents)
        text = {"input_ids": input_ids, "mm_token_type_ids": mm_token_type_ids}
        if has_images or position_ids is None:
            if input_ids is None:
                text = find_placeholders(self.config, self.get_input_embeddings(), inputs_embeds, grid)
            given = {**text, "mm_encoder_outputs": mm_encoder_outputs, **image_inputs, "image_grid_thw": grid}
            check_inputs(self.config, past_key_values=past_key_values, **given)
        if position_ids is None and input_ids is None and (has_images or mm_encoder_outputs):
            position_ids = self.place_images(**text, image_grid_thw=grid, attention_mask=attention_mask)
        elif position_ids is None:
            num_tokens = text["input_ids"].shape[1]
            position_ids = self._position_ids(past_key_values, num_tokens, attention_mask, image_grid_thw is not None)
        zero = None
        if has_images:
            mm_encoder_outputs = {"image": self.get_image_features(**image_inputs, return_dict=True)}
        elif not mm_encoder_outputs and needs_dummy_pass(self, past_key_values):
            device = (inputs_embeds if input_ids is None else input_ids).device
            zero = dummy_image_pass(self, device, spatial_latents is not None, vision_features is not None)
        outputs = self.vlm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_grid_thw=grid,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        if mm_encoder_outputs and outputs.past_key_values is not None:
            outputs.past_key_values.rope_deltas = self.rope_deltas  # for text that follows, see `cached_offset`
        if zero is not None:
            # As with images, the image path runs before the text forward, and after it backward.
            outputs.last_hidden_state = outputs.last_hidden_state + zero
        return outputs


class Spa3VLMForConditionalGeneration(Spa3VLMPreTrainedModel, GenerationMixin):
    """Spa3-VLM with its language head, which answers questions about photos of a place."""

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

    def get_image_features(self, pixel_values: Tensor | None = None, image_grid_thw: Tensor | None = None, **kwargs):
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
        vision_features: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Predict the next tokens. See `Spa3VLMModel.forward` for the arguments not listed here.

        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens to predict; positions with -100 do not count in the loss.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Number of last positions to compute logits for, or the positions themselves; 0 means all.

        Returns:
            `CausalLMOutputWithPast`: Logits of shape `(batch_size, num_kept, vocab_size)`, and the loss if there are
            `labels`.

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
            vision_features=vision_features,
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
        return CausalLMOutputWithPast(loss, logits, outputs.past_key_values, outputs.hidden_states, outputs.attentions)

    def generate(self, *args, **kwargs):
        """See `GenerationMixin.generate`; takes the inputs of `forward`."""
        return super().generate(*args, **detach_latents(self.config, kwargs))

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict) -> Tensor:
        """Positions of shape `(4, batch_size, sequence_length)`: in the text, then frame, row and column."""
        text = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        input_ids, cache = model_kwargs.get("input_ids", inputs_tensor), model_kwargs.get("past_key_values")
        given = {"mm_token_type_ids": None, **model_kwargs, "input_ids": input_ids}
        names = ("image_grid_thw", "num_views")
        given |= zip(names, copy_to_host(*(given.get(name) for name in names)), strict=True)
        embeds = model_kwargs.get("inputs_embeds")
        if not input_ids.shape[1]:  # only `inputs_embeds`
            given |= find_placeholders(self.config, self.get_input_embeddings(), embeds, given["image_grid_thw"])
        ids = given["input_ids"]
        num_cached = 0 if cache is None else int(cache.get_seq_length())
        has_whole_sequence = ids.shape[1] == text.shape[1]
        check_inputs(self.config, **given, num_cached=num_cached if has_whole_sequence else 0)
        offset = cached_offset(cache)
        if not has_whole_sequence or (num_cached and offset is not None):
            # Images are in the cache, and text follows.
            vision = add_offset(text, offset).expand(3, -1, -1)
        elif given["mm_token_type_ids"] is not None and given["image_grid_thw"] is not None:
            names = ("input_ids", "mm_token_type_ids", "image_grid_thw")
            mask = model_kwargs.get("attention_mask")
            vision = self.model.place_images(**{name: given[name] for name in names}, attention_mask=mask)
        else:
            vision, self.model.rope_deltas = text.expand(3, -1, -1), None
            if offset is not None:
                cache.rope_deltas = None  # of what this cache held before
        return torch.cat([text[None], vision])


def add_offset(positions: Tensor, offset: Tensor | None) -> Tensor:
    """Move positions of shape `(batch_size, num_tokens)` by an offset of each row, or of each group of rows."""
    if offset is None:
        return positions
    return positions + offset.to(positions.device).repeat_interleave(len(positions) // len(offset), dim=0)
