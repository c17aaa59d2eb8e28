"""Where work is avoided: the only code that knows the structure of modules."""

from .base import Attachment, Site
from .block_stack import BlockStack
from .guidance import Guidance
from .modules import Modules
from .output import Output
from .unet_branch import UNetBranch

__all__ = ["Attachment", "BlockStack", "Guidance", "Modules", "Output", "Site", "UNetBranch"]
