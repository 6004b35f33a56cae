"""transformers' own tests of image processors, for `MM1ImageProcessor`.

They run where the tests of transformers' source distribution can be imported, and are skipped elsewhere.
"""

import subprocess
import sys
import tempfile
import unittest

import numpy as np
import pytest
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.testing_utils import slow

from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor


common = pytest.importorskip("tests.test_image_processing_common")


class MM1ImageProcessingTester(common.ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase, **kwargs: object):
        kwargs.setdefault("size", {"height": 20, "width": 20})
        kwargs.setdefault("max_tiles", 16)
        kwargs.setdefault("overview_position", "before")
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": MM1ImageProcessor}


class MM1ImageProcessingTest(common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = MM1ImageProcessingTester
    test_cast_dtype = True

    @classmethod
    def setUpClass(cls) -> None:
        # Importing mm1_hf registers the class; this is for a run in which nothing else has.
        config_class = type("ImageProcessingTestConfig", (PreTrainedConfig,), {"model_type": "mm1_image_test"})
        AutoImageProcessor.register(config_class, image_processor_classes={"pil": MM1ImageProcessor}, exist_ok=True)

    def check_tiles(self, images: list, channels: int = 3, **settings: object) -> None:
        """One image, then the batch: as many tiles as the layouts say, of the tile's size."""
        processor = MM1ImageProcessor(**self.image_processor_dict)
        input_data_format = settings.get("input_data_format")
        for batch in (images[0], images):
            layouts = processor.get_layouts(processor.image_sizes(batch, input_data_format))
            num_tiles = sum(layout.num_tiles for sample in layouts for layout in sample)
            self.assertGreater(num_tiles, len(layouts))
            pixel_values = processor(batch, return_tensors="pt", **settings).pixel_values
            self.assertEqual(tuple(pixel_values.shape), (num_tiles, channels, 20, 20))

    # The four below state one row of pixel_values per image; tiles are flat here.

    def test_call_pil(self) -> None:
        self.check_tiles(self.image_processor_tester.prepare_image_inputs())

    def test_call_numpy(self) -> None:
        self.check_tiles(self.image_processor_tester.prepare_image_inputs(numpify=True))

    def test_call_pytorch(self) -> None:
        self.check_tiles(self.image_processor_tester.prepare_image_inputs(torchify=True))

    def test_call_numpy_4_channels(self) -> None:
        self.check_tiles(
            self.image_processor_tester.prepare_image_inputs(num_channels=4, numpify=True),
            channels=4,
            do_convert_rgb=False,
            input_data_format="channels_last",
            image_mean=[0.0] * 4,
            image_std=[1.0] * 4,
        )

    @slow
    def test_pil_can_run_without_torchvision(self) -> None:
        # The original's fresh process does not import the package that registers the class.
        processor = MM1ImageProcessor(**self.image_processor_dict)
        image = self.image_processor_tester.prepare_image_inputs(batch_size=1, numpify=True)[0]
        script = """if True:
            import sys
            sys.modules["torchvision"] = None
            import numpy as np
            from mm1_hf.model.image_processing_mm1 import MM1ImageProcessor
            folder = sys.argv[1]
            processor = MM1ImageProcessor.from_pretrained(folder)
            np.save(folder + "/output.npy", processor(np.load(folder + "/input.npy"))["pixel_values"])
        """
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            np.save(f"{folder}/input.npy", image)
            subprocess.run([sys.executable, "-c", script, folder], check=True)
            np.testing.assert_array_equal(np.load(f"{folder}/output.npy"), processor(image)["pixel_values"])

    @unittest.skip("One class without torchvision serves every machine.")
    def test_new_models_require_torchvision_backend(self) -> None: ...


del common
